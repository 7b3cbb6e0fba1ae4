"""Tux Paint's stamps from Debian, without root and without installing anything."""

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from speechclip.errors import InvalidInput

PACKAGE = "tuxpaint-stamps-default"
PACKAGE_SECONDS = 1_800
# The release of 2022 has 796 pictures and 7,430 descriptions; far fewer mean another layout.
MIN_PICTURES, MIN_DESCRIPTIONS = 500, 5_000
_ELSE = "else give `speechclip ingest tuxpaint` an extracted package, or use the synthetic corpus"

logger = logging.getLogger(__name__)


def fetch_stamps(cache_dir: str | Path | None = None) -> Path:
    """The stamps' folder under `cache_dir` (`~/.cache/speechclip/tuxpaint`), downloaded (161 MB) if it isn't there yet.

    apt verifies the package's signature; its state and cache live in the folder too, so no root is needed. A retry
    after a failure starts anew; `InvalidInput` says what to do where apt can't help.
    """
    cache = Path(cache_dir or "~/.cache/speechclip/tuxpaint").expanduser().absolute()
    final = cache / "stamps"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="incoming-") as scratch:
        package = _download(Path(scratch))
        logger.info("extracting %s", package.name)
        _run(["dpkg-deb", "-x", str(package), str(Path(scratch, "x"))], cwd=Path(scratch))
        stamps = Path(scratch, "x/usr/share/tuxpaint/stamps")
        _verify(stamps)
        if not final.is_dir():
            os.rename(stamps, final)
    return final


def _download(scratch: Path) -> Path:
    options = []
    for name in ("state/lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    for option in (f"Dir::State={scratch}/state", f"Dir::Cache={scratch}/cache", "Debug::NoLocking=1"):
        options += ["-o", option]
    # apt would download as the user _apt, who can't write into a private folder.
    options += ["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3"]
    logger.info("downloading %s from Debian (161 MB)", PACKAGE)
    _run(["apt-get", *options, "-q", "update"], cwd=scratch)
    _run(["apt-get", *options, "-q", "download", PACKAGE], cwd=scratch)
    packages = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise InvalidInput(f"apt-get left no {PACKAGE} behind; try again, {_ELSE}")
    return packages[0]


def _run(command: Sequence[str], *, cwd: Path) -> None:
    if shutil.which(command[0]) is None:
        raise InvalidInput(f"{command[0]} is not on this machine's PATH, so Debian's package can't be had; {_ELSE}")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=PACKAGE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"{command[0]} ran past {PACKAGE_SECONDS} s; try again, {_ELSE}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise InvalidInput(f"{command[0]} failed ({said[-1]}); try again, {_ELSE}")


def _verify(stamps: Path) -> None:
    num_pictures = sum(1 for _ in stamps.rglob("*.png"))
    num_descriptions = sum(1 for _ in stamps.rglob("*_desc*.ogg"))
    if num_pictures < MIN_PICTURES or num_descriptions < MIN_DESCRIPTIONS:
        found = f"{num_pictures} pictures and {num_descriptions} descriptions"
        raise InvalidInput(f"{PACKAGE} holds {found}, expected {MIN_PICTURES} and {MIN_DESCRIPTIONS} or more; {_ELSE}")
