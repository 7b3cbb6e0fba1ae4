"""Downloads and runs Debian's flite and espeak-ng, which speak, and librsvg, which draws. Nothing is installed."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOTS = ("flite", "espeak-ng", "librsvg2-bin")
# Which of the packages that they depend on are unpacked: libraries and data. The machine's own C library must be used,
# or its programs would not start.
_UNPACKED = re.compile(r"flite|espeak-ng(-data)?|zlib1g|lib(?!c6$|gcc-s1$)[\w.+-]+")
_SECONDS = 900


def unpack_tools(folder: Path) -> dict[str, str]:
    """The environment variables with which flite, espeak-ng and rsvg-convert run. Downloads them first (60 MB)."""
    root = folder / "root"
    if not root.is_dir():
        _fetch(folder)
    libraries = sorted({str(file.parent) for top in ("lib", "usr/lib") for file in (root / top).rglob("*.so*")})
    data = next(root.glob("usr/lib/*/espeak-ng-data"))
    return {
        "PATH": str(root / "usr/bin"),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "ESPEAK_DATA_PATH": str(data.parent),
    }


def run_tool(command: Sequence[str], environment: dict[str, str], *, seconds: float = 60) -> None:
    """Run one of the tools. If it fails, this process exits with the tool's message."""
    _run([f"{environment['PATH']}/{command[0]}", *command[1:]], environment=environment, seconds=seconds)


def _fetch(folder: Path) -> None:
    for name in ("state/lists/partial", "cache/archives/partial", "packages", "incoming"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache", "Debug::NoLocking=1"]
    # By default apt downloads as the user _apt, which cannot write into a private folder.
    options += ["APT::Sandbox::User=", "Acquire::Retries=3"]
    apt = [part for option in options for part in ("-o", option)]
    _run(["apt-get", *apt, "-q", "update"])
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    named = _run(["apt-cache", *apt, "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), *_ROOTS])
    packages = sorted({line for line in named.splitlines() if _UNPACKED.fullmatch(line)})
    _run(["apt-get", *apt, "-q", "download", *packages], folder=folder / "packages")
    for package in sorted((folder / "packages").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder / "incoming")])
    (folder / "incoming").rename(folder / "root")


def _run(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
    seconds: float = _SECONDS,
) -> str:
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run ({error}); use Debian or Ubuntu, which have apt-get and dpkg-deb")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")
