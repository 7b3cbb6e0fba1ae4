"""Speech synthesis and an SVG renderer: Debian's flite, espeak-ng and librsvg, unpacked and not installed."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOTS = ("flite", "espeak-ng", "librsvg2-bin")
# Of all that these depend on, libraries and data; the machine's own C library must stay, or nothing of it would start.
_UNPACKED = re.compile(r"flite|espeak-ng(-data)?|zlib1g|lib(?!c6$|gcc-s1$)[\w.+-]+")
_SECONDS = 900


def unpack_tools(folder: Path) -> dict[str, str]:
    """The environment in which flite, espeak-ng and rsvg-convert run; fetched (60 MB) if they aren't there yet."""
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
    """Run one of the tools to its end; a failure ends this process with what the tool said."""
    _run([f"{environment['PATH']}/{command[0]}", *command[1:]], environment=environment, seconds=seconds)


def _fetch(folder: Path) -> None:
    for name in ("state/lists/partial", "cache/archives/partial", "packages", "incoming"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache", "Debug::NoLocking=1"]
    # apt would download as the user _apt, who can't write into a private folder.
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
        sys.exit(f"{command[0]} can't be run ({error}); the evidence needs Debian's or Ubuntu's apt-get and dpkg-deb")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")
