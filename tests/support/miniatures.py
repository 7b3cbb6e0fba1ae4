"""Miniatures of the published corpora in exactly their layouts, of real short recordings and pictures."""

import io
import json
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


class SpokenCOCO:
    """Five pictures of both years, two or three captions each, in the published files' exact shape."""

    # COCO id, year, Karpathy's split.
    pictures = (
        (57870, "train2014", "train"),
        (384029, "train2014", "train"),
        (522418, "val2014", "restval"),
        (184613, "val2014", "val"),
        (391895, "val2014", "test"),
    )

    def __init__(self, root: Path, *, inner: str = "SpokenCOCO", images: str = "mscoco_img") -> None:
        self.root, self.inner, self.images = root, root / inner, root / images

    def entries(self, *wanted: str) -> list[dict[str, Any]]:
        """The published entries of the pictures of these years or of Karpathy's splits."""
        found = []
        for number, (coco_id, year, split) in enumerate(self.pictures):
            captions = [
                {
                    "text": f"A Man number {k} rides {coco_id} waves.",
                    "speaker": f"m{number}{k % 2}",
                    "uttid": f"m{number}{k % 2}-3AQN9REUTFGUZWJWNMPO4O4RBEPYDA_{coco_id}_{number}{k}",
                    "wav": f"wavs/{year[:-4]}/0/m{number}{k % 2}-3AQN_{coco_id}_{number}{k}.wav",
                }
                for k in range(2 + number % 2)
            ]
            if year in wanted or split in wanted:
                image = f"{year}/COCO_{year}_{coco_id:012}.jpg"
                found.append({"image": image, "captions": captions})
        return found

    def write(self) -> "SpokenCOCO":
        """Media and the plain files."""
        self.write_media()
        for year in ("train", "val"):
            self.write_json(f"SpokenCOCO_{year}.json", f"{year}2014")
        return self

    def write_media(self) -> None:
        """The pictures and the recordings."""
        number = 0
        for entry in self.entries("train2014", "val2014"):
            put(self.images / entry["image"], picture(number))
            for caption in entry["captions"]:
                number += 1
                put(self.inner / caption["wav"], recording(number))

    def write_json(self, name: str, *wanted: str) -> Path:
        """One published file."""
        return put(self.inner / name, json.dumps({"data": self.entries(*wanted)}))

    def write_ksplits(self, folder: str = "") -> None:
        """The authors' split files."""
        for name, splits in (("train", ("train", "restval")), ("val", ("val",)), ("test", ("test",))):
            data = [entry | {"reassign_id": number} for number, entry in enumerate(self.entries(*splits))]
            put(self.inner / folder / f"SpokenCOCO_ksplit_{name}.json", json.dumps({"data": data}))

    def write_karpathy(self, path: Path) -> Path:
        """Karpathy's JSON of the same splits."""
        images = [
            {
                "filepath": year,
                "filename": f"COCO_{year}_{coco_id:012}.jpg",
                "split": split,
                "cocoid": coco_id,
                "sentids": [1, 2],
                "sentences": [{"raw": "A man."}],
                "imgid": number,
            }
            for number, (coco_id, year, split) in enumerate(self.pictures)
        ]
        return put(path, json.dumps({"images": images, "dataset": "coco"}))


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """The rows but for these columns."""
    return [{name: cell for name, cell in row.items() if name not in columns} for row in rows]
