"""Hosts reached by ssh alone: Debian's sshd with keys, a home of their own, this Python first on the path."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from support.hosts import Host, Network

# Debian's package of each program; sshd lies where only root's path leads.
PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
USER = "ray"
# A user of this name, with root's number because this Python and the test's folders may be root's alone.
SETTLE = """
{{ echo '{user}:x:0:0::{home}:/bin/bash'; cat /etc/passwd; }} > {folder}/passwd
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs tmpfs /run
mkdir /run/sshd
# Here this project is installed; there only its packages are.
for link in {packages}/__editable__*speechclip*; do mount --bind /dev/null $link; done
"""
SSHD = """
ListenAddress {address}
HostKey {key}
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AuthorizedKeysFile {home}/.ssh/authorized_keys
"""


def why_not() -> str:
    """What this machine lacks, in words; empty if nothing."""
    missing = sorted({package for program, package in PACKAGES.items() if _program(program) is None})
    return f"install Debian's {', '.join(missing)}" if missing else ""


def add(network: Network, name: str) -> tuple[Host, Path]:
    """A host with the user's own home, on it."""
    host = network.add(name)
    home = host.folder / "home"
    (home / ".ssh").mkdir(parents=True)
    code, said = host.run(
        ["bash", "-ec", SETTLE.format(user=USER, home=home, folder=host.folder, packages=sysconfig.get_path("purelib"))]
    )
    assert code == 0, said
    return host, home


def let_in(host: Host, home: Path, key: Path) -> None:
    """Serve whoever has the private half of the key."""
    shutil.copy(f"{key}.pub", home / ".ssh" / "authorized_keys")
    # At the top, as Debian's own leaves where the shell is not interactive.
    (home / ".bashrc").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    own = make_key(host.folder / "host")
    (host.folder / "sshd_config").write_text(SSHD.format(address=host.address, key=own, home=home))
    with (host.folder / "sshd.log").open("w") as log:
        host.start([str(_program("sshd")), "-D", "-e", "-f", f"{host.folder}/sshd_config"], stdout=log)


def make_key(folder: Path) -> Path:
    """A new key in a folder; its public half lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id_ed25519"], check=True)
    return folder / "id_ed25519"


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
