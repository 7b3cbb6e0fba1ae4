"""Download Tux Paint's stamps from Debian, without root and without installing anything."""

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
# The release of 2022 has 796 pictures and 7,430 spoken captions. Far fewer mean that the layout has changed.
MIN_PICTURES, MIN_DESCRIPTIONS = 500, 5_000
_OTHERWISE = "give `speechclip ingest tuxpaint` an extracted package, or use the synthetic corpus"
_AGAIN = f"try again, else {_OTHERWISE}"

logger = logging.getLogger(__name__)


def fetch_stamps(cache_dir: str | Path | None = None) -> Path:
    """The folder of the stamps under `cache_dir` (`~/.cache/speechclip/tuxpaint`); downloads them (161 MB) if needed.

    apt verifies the package's signature. Its state and cache are in that folder too, so no root is needed. After a
    failure the next call starts from the beginning. `InvalidInput` says what to do on a machine without apt.
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
    # By default apt downloads as the user _apt, who can't write into a private folder.
    options += ["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3"]
    logger.info("downloading %s from Debian (161 MB)", PACKAGE)
    _run(["apt-get", *options, "-q", "update"], cwd=scratch)
    _run(["apt-get", *options, "-q", "download", PACKAGE], cwd=scratch)
    packages = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise InvalidInput(f"apt-get downloaded no {PACKAGE}", _AGAIN)
    return packages[0]


def _run(command: Sequence[str], *, cwd: Path) -> None:
    if shutil.which(command[0]) is None:
        raise InvalidInput(
            f"{command[0]} is not on this machine's PATH, so Debian's package can't be downloaded", _OTHERWISE
        )
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=PACKAGE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"{command[0]} took longer than {PACKAGE_SECONDS} s", _AGAIN) from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise InvalidInput(f"{command[0]} failed ({words[-1]})", _AGAIN)


def _verify(stamps: Path) -> None:
    num_pictures = sum(1 for _ in stamps.rglob("*.png"))
    num_descriptions = sum(1 for _ in stamps.rglob("*_desc*.ogg"))
    if num_pictures < MIN_PICTURES or num_descriptions < MIN_DESCRIPTIONS:
        found = f"{num_pictures} pictures and {num_descriptions} spoken captions"
        raise InvalidInput(
            f"{PACKAGE} has {found}, expected at least {MIN_PICTURES} and {MIN_DESCRIPTIONS}", _OTHERWISE
        )
