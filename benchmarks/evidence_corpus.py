"""Tux Paint's English captions spoken by seven synthetic voices, and the tables of the experiments.

    python benchmarks/evidence_corpus.py FOLDER [STAMPS]

leaves `english.csv` and `shuffled.csv` for `speechclip ingest table`. The voices are Debian's flite and espeak-ng,
unpacked into FOLDER without root and without installing anything.
"""

import csv
import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.corpora.sources import read_sources
from speechclip.corpora.tuxpaint import Stamp, find_stamps, group_stamps, stamps_folder

# Each is a synthesiser's command up to the output file; the caption follows the option after it.
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
_PACKAGES = ("flite", "espeak-ng")
# The machine's own C library must stay, or nothing of it would start.
_NEVER_UNPACKED = re.compile(r"libc6|libgcc-s1|gcc-\d+-base")
_PACKAGES_SECONDS, _CAPTION_SECONDS = 900, 60
_COLUMNS = ("id", "audio", "image", "text", "split", "speaker", "language", "group")


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


def make_tables(folder: Path, stamps: Path) -> tuple[Path, Path]:
    """`english.csv` and the same with the pictures of its training rows permuted, `shuffled.csv`.

    Splits: train and dev (six voices), unseen-voice (the seventh), test (the human English descriptions). `group` is
    one right answer, as `speechclip ingest tuxpaint` has it.
    """
    known = find_stamps(stamps_folder(stamps))
    uris = [uri for stamp in known for uri in (stamp.picture, *stamp.recordings.values())]
    groups = group_stamps(known, read_sources(audio=(), images=uris)[1])
    captioned = [stamp for stamp in known if stamp.category != "symbols" and "en" in stamp.texts]
    speak(sorted({stamp.texts["en"] for stamp in captioned}), folder)
    rows = [
        _synthetic_row(stamp, voice, folder, groups[stamp.name]) for stamp in captioned for voice in VOICES
    ] + [
        Row(f"{stamp.name}-human", stamp.recordings["en"], stamp.picture, stamp.texts["en"], "test", "human", "en",
            groups[stamp.name])
        for stamp in captioned
        if "en" in stamp.recordings
    ]  # fmt: skip
    return write_table(rows, folder / "english.csv"), write_table(shuffle_pictures(rows), folder / "shuffled.csv")


def shuffle_pictures(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of train and dev with the pictures and groups of another group, one for one; no group stays."""
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


def speak(captions: Sequence[str], folder: Path) -> None:
    """Every caption by every voice as a wav under `folder`, those that are there already left as they are."""
    jobs = [(voice, text) for voice in VOICES for text in captions if not (folder / wav_name(voice, text)).exists()]
    if not jobs:
        return
    environment = unpack_synthesisers(folder / "synthesisers")
    for voice in VOICES:
        (folder / "voices" / voice).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(_speak, text, voice, folder, environment) for voice, text in jobs]:
            job.result()


def wav_name(voice: str, text: str) -> str:
    """Where a caption's sound lies below the corpus folder."""
    return f"voices/{voice}/{hashlib.sha256(text.encode()).hexdigest()[:16]}.wav"


def unpack_synthesisers(folder: Path) -> dict[str, str]:
    """The environment in which flite and espeak-ng run, after fetching them and their libraries (26 MB) from Debian."""
    root = folder / "root"
    if not root.is_dir():
        for name in ("state/lists/partial", "cache/archives/partial", "incoming"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        options = [f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache", "Debug::NoLocking=1"]
        # apt would download as the user _apt, who can't write into a private folder.
        options += ["APT::Sandbox::User=", "Acquire::Retries=3"]
        apt = [part for option in options for part in ("-o", option)]
        _run(["apt-get", *apt, "-q", "update"], folder)
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        closure = ["depends", "--recurse", *(f"--no-{kind}" for kind in kinds), *_PACKAGES]
        lines = _run(["apt-cache", *apt, *closure], folder).splitlines()
        packages = sorted({line for line in lines if line[:1].isalnum() and not _NEVER_UNPACKED.fullmatch(line)})
        _run(["apt-get", *apt, "-q", "download", *packages], folder)
        for package in sorted(folder.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder / "incoming")], folder)
        (folder / "incoming").rename(root)
    libraries = sorted(
        {str(file.parent) for file in (root / "usr/lib").rglob("*.so*")}
        | {str(file.parent) for file in (root / "lib").rglob("*.so*")}
    )
    data = next(root.glob("usr/lib/*/espeak-ng-data"))
    return {
        "PATH": str(root / "usr/bin"),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "ESPEAK_DATA_PATH": str(data.parent),
    }


def write_table(rows: Sequence[Row], path: Path) -> Path:
    """The rows as a CSV, replaced whole."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    return path


def _synthetic_row(stamp: Stamp, voice: str, folder: Path, group: str) -> Row:
    name, text = f"{stamp.name}-{voice}", stamp.texts["en"]
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    split = "unseen-voice" if voice == UNSEEN_VOICE else "dev" if share < DEV_SHARE else "train"
    return Row(name, str(folder / wav_name(voice, text)), stamp.picture, text, split, voice, "en", group)


def _speak(text: str, voice: str, folder: Path, environment: dict[str, str]) -> None:
    program, *choice = VOICES[voice]
    final = folder / wav_name(voice, text)
    # flite wants a name that ends in .wav.
    partial = final.with_suffix(".partial.wav")
    output = ["-t", text, "-o", str(partial)] if program == "flite" else ["-w", str(partial), text]
    command = [f"{environment['PATH']}/{program}", *choice, *output]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=_CAPTION_SECONDS, check=False)
    if done.returncode != 0 or not partial.exists():
        sys.exit(f"{voice} could not say {text!r}: {done.stderr.decode(errors='replace').strip()}")
    partial.rename(final)


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PACKAGES_SECONDS, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _main() -> None:
    from speechclip.corpora.debian import fetch_stamps

    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_tables(folder, Path(sys.argv[2]) if len(sys.argv) > 2 else fetch_stamps())


if __name__ == "__main__":
    _main()
