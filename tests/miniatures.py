"""Miniatures of the published corpora in exactly their layouts, of real short recordings and pictures."""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

# Real names of Flickr8k, the last as its captions have it: no picture bears that name.
FLICKR_SPLITS = {
    "train": ["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"],
    "dev": ["2090545563_a4e66ec76b.jpg"],
    "test": ["3385593926_d3e9c21170.jpg"],
}
UNSPLIT = "2258277193_586949ec62.jpg.1"


def recording(number: int, num_samples: int = 1_600, kind: str = "WAV") -> bytes:
    """A tone at 16 kHz, no two numbers alike."""
    buffer = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(num_samples) * (0.05 + number / 1_000))
    soundfile.write(buffer, samples, 16_000, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def picture(number: int) -> bytes:
    """A JPEG of noise, no two numbers alike."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    """The file, written with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


class Flickr8k:
    """Four pictures, five captions each, read by two voices; the authors' names unless a layout says otherwise."""

    def __init__(
        self, root: Path, *, images: str = "Images", texts: str = "", audio: str = "flickr_audio", splits: str = ""
    ) -> None:
        self.root, self.images, self.texts = root, root / images, root / texts
        self.audio, self.splits = root / audio, root / splits
        self.names = [name for names in FLICKR_SPLITS.values() for name in names]

    def write(self) -> "Flickr8k":
        """All of it, with the authors' captions and split lists."""
        self.write_media()
        self.write_tokens()
        self.write_lists()
        return self

    def write_media(self) -> None:
        """The pictures and the recordings with who speaks them."""
        speakers = []
        for number, name in enumerate(self.names):
            put(self.images / name, picture(number))
            for k in range(5):
                wav = f"{name.removesuffix('.jpg')}_{k}.wav"
                put(self.audio / "wavs" / wav, recording(5 * number + k))
                speakers.append(f"{wav} {number % 2 + 1}\n")
        put(self.audio / "wav2spk.txt", "".join(speakers))
        put(self.audio / "wav2capt.txt", "".join(f"{line.split()[0]} x.jpg #0\n" for line in speakers))

    def write_tokens(self) -> None:
        """The authors' captions, with the one name that has no picture."""
        names = [*self.names, UNSPLIT]
        lines = [f"{name}#{k}\tA Dog number {k} runs over {name[:4]} .\n" for name in names for k in range(5)]
        put(self.texts / "Flickr8k.token.txt", "".join(lines))
        put(self.texts / "Flickr8k.lemma.token.txt", "a lemma\n")

    def write_captions(self) -> None:
        """Kaggle's captions."""
        lines = [f'{name},"A Dog, number {k}, says ""hi"" ."\n' for name in self.names for k in range(5)]
        put(self.texts / "captions.txt", "image,caption\n" + "".join(lines))

    def write_lists(self) -> None:
        """The authors' split lists."""
        for split, names in FLICKR_SPLITS.items():
            put(self.splits / f"Flickr_8k.{split}Images.txt", "".join(f"{name}\n" for name in names))

    def write_karpathy(self, path: Path) -> Path:
        """Karpathy's JSON of the same splits."""
        images = [
            {"sentids": [0], "imgid": 0, "sentences": [], "split": "val" if split == "dev" else split, "filename": name}
            for split, names in FLICKR_SPLITS.items()
            for name in names
        ]
        return put(path, json.dumps({"images": images, "dataset": "flickr8k"}))


def tree(root: Path) -> Iterable[str]:
    """Every file below, by its path."""
    return sorted(os.path.relpath(path, root) for path in root.rglob("*") if path.is_file())


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """The rows but for these columns."""
    return [{name: cell for name, cell in row.items() if name not in columns} for row in rows]
