"""Makes the corpora of `make evidence`: Tux Paint's English captions, spoken by seven synthetic voices.

    python benchmarks/evidence_corpus.py FOLDER [STAMPS]

It writes the folder `stamps/`, where every picture is a png, for `speechclip ingest tuxpaint`. It writes `english.csv`
and `shuffled.csv` for `speechclip ingest table`. STAMPS is the folder of an extracted package. Without it, Debian's
package is downloaded.
"""

import csv
import hashlib
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from evidence_tools import run_tool, unpack_tools

from speechclip.corpora.sources import read_sources
from speechclip.corpora.tuxpaint import Stamp, find_stamps, group_stamps, stamps_folder

# The beginning of each voice's command. The options for the output file and the caption follow.
VOICES = {
    "flite-slt": ("flite", "-voice", "slt"),
    "flite-rms": ("flite", "-voice", "rms"),
    "flite-awb": ("flite", "-voice", "awb"),
    "flite-kal16": ("flite", "-voice", "kal16"),
    "espeak-us": ("espeak-ng", "-v", "en-us"),
    "espeak-gb-f2": ("espeak-ng", "-v", "en-gb+f2"),
    "espeak-scotland-m3": ("espeak-ng", "-v", "en-gb-scotland+m3"),
}
UNSEEN_VOICE = "espeak-scotland-m3"
DEV_SHARE = 0.05
SHUFFLE_SEED = 7122
PICTURE_PIXELS = 256


class Row(NamedTuple):
    """One row of a table for `speechclip ingest table`."""

    id: str
    audio: str
    image: str
    text: str
    split: str
    speaker: str
    language: str
    group: str


class Corpus(NamedTuple):
    """The folder of stamps, where every picture is a png, and the two tables."""

    stamps: Path
    english: Path
    shuffled: Path


def make_corpus(folder: Path, stamps: Path) -> Corpus:
    """Write the recordings and the tables into `folder`.

    `shuffled.csv` has the rows of `english.csv`, but in train and dev each picture is replaced by another one.

    | split | rows |
    |---|---|
    | train, dev | six synthetic voices |
    | unseen-voice | the seventh synthetic voice |
    | test | the human English descriptions |

    A `group` has the stamps that are right answers for each other, as `speechclip ingest tuxpaint` makes it.
    """
    environment = unpack_tools(folder / "tools")
    view = view_stamps(stamps, folder, environment)
    known = find_stamps(view)
    uris = [uri for stamp in known for uri in (stamp.picture, *stamp.recordings.values())]
    groups = group_stamps(known, read_sources(audio=(), images=uris)[1])
    captioned = [stamp for stamp in known if stamp.category != "symbols" and "en" in stamp.texts]
    speak(sorted({stamp.texts["en"] for stamp in captioned}), folder, environment)
    rows = [
        _synthetic_row(stamp, voice, folder, groups[stamp.name]) for stamp in captioned for voice in VOICES
    ] + [
        Row(f"{stamp.name}-human", stamp.recordings["en"], stamp.picture, stamp.texts["en"], "test", "human", "en",
            groups[stamp.name])
        for stamp in captioned
        if "en" in stamp.recordings
    ]  # fmt: skip
    english, shuffled = folder / "english.csv", folder / "shuffled.csv"
    write_table(rows, english)
    write_table(shuffle_pictures(rows), shuffled)
    return Corpus(view, english, shuffled)


def shuffle_pictures(rows: Sequence[Row]) -> list[Row]:
    """The rows, where each group of train and dev has the picture and the name of another group."""
    of_group: dict[str, list[str]] = {}
    for row in rows:
        if row.image not in of_group.setdefault(row.group, []):
            of_group[row.group].append(row.image)
    names = sorted(of_group)
    random.Random(SHUFFLE_SEED).shuffle(names)
    other = dict(zip(names, [*names[1:], names[0]], strict=True))
    return [
        row._replace(image=of_group[other[row.group]][0], group=other[row.group])
        if row.split in ("train", "dev")
        else row
        for row in rows
    ]


def speak(captions: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """Write each caption in each voice as a wav under `folder`. Existing files are kept."""
    jobs = [(voice, text) for voice in VOICES for text in captions if not (folder / wav_name(voice, text)).exists()]
    for voice in VOICES:
        (folder / "voices" / voice).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(_speak, text, voice, folder, environment) for voice, text in jobs]:
            job.result()


def wav_name(voice: str, text: str) -> str:
    """The path of a caption's recording in the corpus folder."""
    return f"voices/{voice}/{hashlib.sha256(text.encode()).hexdigest()[:16]}.wav"


def view_stamps(stamps: Path, folder: Path, environment: dict[str, str]) -> Path:
    """A folder of links to the stamps. An svg without a png gets a drawn png (163 stamps that are no symbols)."""
    source, view = stamps_folder(stamps), folder / "stamps"
    for file in sorted(file for file in source.rglob("*") if file.is_file()):
        link = view / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file)
        picture = link.with_suffix(".png")
        if file.suffix == ".svg" and not file.with_suffix(".png").exists() and not picture.exists():
            partial = picture.with_suffix(".partial")
            command = ["rsvg-convert", "--width", str(PICTURE_PIXELS), "--keep-aspect-ratio", "--output", str(partial)]
            run_tool([*command, str(file)], environment)
            partial.rename(picture)
    return view


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Row._fields, *rows])


def _synthetic_row(stamp: Stamp, voice: str, folder: Path, group: str) -> Row:
    name, text = f"{stamp.name}-{voice}", stamp.texts["en"]
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    split = "unseen-voice" if voice == UNSEEN_VOICE else "dev" if share < DEV_SHARE else "train"
    return Row(name, str(folder / wav_name(voice, text)), stamp.picture, text, split, voice, "en", group)


def _speak(text: str, voice: str, folder: Path, environment: dict[str, str]) -> None:
    program, *choice = VOICES[voice]
    final = folder / wav_name(voice, text)
    # flite needs a name that ends in .wav.
    partial = final.with_suffix(".partial.wav")
    output = ["-t", text, "-o", str(partial)] if program == "flite" else ["-w", str(partial), text]
    run_tool([program, *choice, *output], environment)
    partial.rename(final)


def _main() -> None:
    from speechclip.corpora.debian import fetch_stamps

    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_corpus(folder, Path(sys.argv[2]) if len(sys.argv) > 2 else fetch_stamps())


if __name__ == "__main__":
    _main()
