"""Hosts on one machine: each has its own address, processes, /tmp/ray and shared memory; it dies or is cut off at once.

Linux namespaces behind one bridge, by iproute2 and util-linux, as root. The machine itself is the first address of the
network, so a test speaks to a host as to any other computer.
"""

import contextlib
import itertools
import os
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

# From inside: own name and address, own processes, own folders for what Ray shares between the processes of one node.
SETUP = """
hostname {name}
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp/ray
mount --bind {folder}/hosts /etc/hosts
echo up > {folder}/up
exec sleep infinity
"""
START_SECONDS = 30
# Of this process: several may be up at once.
_NETWORKS = itertools.count()


def why_not() -> str:
    """What this machine lacks for hosts, in words; empty if nothing."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} (install iproute2 and util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    made = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True)
    return made.stderr.strip()


@dataclass
class Host:
    """One of them. `folder` is its home; all else of the file system but /tmp/ray and /dev/shm is shared."""

    name: str
    address: str
    folder: Path
    link: str
    init: subprocess.Popen[bytes]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        stdout: IO[str] | int | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """A process on this host, with this Python first on its path; stderr goes where stdout goes."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        known = {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8"} | dict(environment or {})
        inside = ["nsenter", f"--target={self._pid()}", "--all", f"--wd={folder or self.folder}", "--"]
        process = subprocess.Popen(
            [*inside, *command], env=known, text=True, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.running.append(process)
        return process

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        timeout: float = 300,
    ) -> tuple[int, str]:
        """The exit code of a process on this host, and all that it said."""
        process = self.start(command, environment, folder=folder, stdout=subprocess.PIPE)
        said, _ = process.communicate(timeout=timeout)
        return process.returncode, said

    def kill(self) -> None:
        """End it as a power cut does: every process at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid(), 9)
        self.init.wait()
        for process in self.running:
            process.wait()

    def cut(self) -> None:
        """Unplug its cable."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self.link, "up")

    def _pid(self) -> int:
        """The first process inside, as the machine numbers it."""
        return int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()[0])


class Network(contextlib.AbstractContextManager["Network"]):
    """A bridge with hosts; `gateway` is the machine's own address on it. At the end all of it is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Names of interfaces hold fifteen characters.
        letter = string.ascii_lowercase[next(_NETWORKS) % 26]
        self._mark = f"sc{os.getpid()}{letter}"
        self._subnet = f"10.{77 + ord(letter) - ord('a')}.{os.getpid() % 250 + 1}"
        self.gateway = f"{self._subnet}.1"
        self.hosts: dict[str, Host] = {}
        self._count = 1

    def __enter__(self) -> "Network":
        _ip("link", "add", self._mark, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._mark)
        _ip("link", "set", self._mark, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.hosts):
            self.remove(name)
        _ip("link", "del", self._mark)

    def add(self, name: str) -> Host:
        """A new host, up; a name may be used again once its host is gone, and gets a new address."""
        self._count += 1
        number, space, link = self._count, f"{self._mark}-{self._count}", f"{self._mark}v{self._count}"
        address, folder = f"{self._subnet}.{number}", self.folder / f"{name}-{number}"
        folder.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)  # where every host mounts its own
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self._mark, "up")
        for words in ("addr add {}/24 dev eth0", "link set eth0 up", "link set lo up", "route add default via {}"):
            _ip("-n", space, *words.format(self.gateway if "via" in words else address).split())
        inside = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child", "bash", "-ec"]
        script = SETUP.format(name=name, folder=folder)
        with (folder / "log").open("w") as log:
            enter = ["ip", "netns", "exec", space, *inside, script]
            init = subprocess.Popen(enter, start_new_session=True, stdout=log, stderr=log)
        for _ in _until(START_SECONDS):
            if (folder / "up").exists():
                break
        self.hosts[name] = Host(name, address, folder, link, init)
        return self.hosts[name]

    def remove(self, name: str) -> None:
        """Kill the host and take its address away."""
        host = self.hosts.pop(name)
        if host.init.poll() is None:
            host.kill()
        _ip("netns", "del", "-".join(host.link.rsplit("v", 1)))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    raise AssertionError(f"not so within {seconds} s")
