"""`ray up` with our own ray_config.yaml on machines of one's own, from another machine, by nothing but ssh."""

import hashlib
import json
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support import hosts, ssh_hosts
from support.fleet import summary
from support.hosts import Host, Network
from support.ray_hosts import PROJECT, copy_project, wait_until

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@dataclass
class Lab:
    """Three machines with sshd, and the one that a person sits at."""

    head: Host
    workers: list[Host]
    desk: Host
    home: Path
    project: Path

    def at_desk(self, *command: str, seconds: float = 600) -> str:
        """What the person types there, and what it says."""
        code, said = self.desk.run(command, self.environment, folder=self.project, timeout=seconds)
        assert code == 0, said
        return said

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "LOGNAME": ssh_hosts.USER,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if reason := hosts.why_not() or ssh_hosts.why_not():
        pytest.skip(f"`ray up` was NOT tried: {reason}")
    try:
        with Network(tmp_path / "hosts") as network:
            desk, home = ssh_hosts.add(network, "desk")
            key = ssh_hosts.make_key(home / ".ssh")
            machines = [ssh_hosts.add(network, name) for name in ("head", "one", "two")]
            for machine in machines:
                ssh_hosts.let_in(*machine, key)
            head, *workers = [host for host, _ in machines]
            yield Lab(head, workers, desk, home, tmp_path / "project")
    finally:
        # Where Ray keeps its ssh connections, by the user's name.
        shutil.rmtree(f"/tmp/ray_ssh_{hashlib.sha256(ssh_hosts.USER.encode()).hexdigest()[:10]}", ignore_errors=True)


def our_config(lab: Lab, manifest: Path, store: Path) -> str:
    """ray_config.yaml with other addresses and settings, and not one command changed."""
    config = yaml.safe_load((PROJECT / "ray_config.yaml").read_text())
    config["provider"] |= {"head_ip": lab.head.address, "worker_ips": [host.address for host in lab.workers]}
    assert config["auth"] == {"ssh_user": ssh_hosts.USER}
    config["auth"]["ssh_private_key"] = "~/.ssh/id_ed25519"
    config["metadata"]["speechclip"] |= {"manifest": str(manifest), "store": str(store)}
    config["metadata"]["speechclip"] |= dict.fromkeys(("speech", "image", "text"), "toy")
    return yaml.safe_dump(config)


# A question to the dashboard from the person's desk, by way of ssh; "none" while nobody answers.
ASK = """
import pathlib, sys, urllib.error, urllib.request
token = pathlib.Path.home().joinpath(".ray/auth_token").read_text().strip() if sys.argv[2] == "token" else ""
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"} if token else {})
try:
    print(urllib.request.urlopen(request, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("none")
"""
NODES = "http://localhost:8265/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"


def num_alive(lab: Lab) -> int:
    answer = lab.at_desk(sys.executable, "-c", ASK, NODES, "token").strip()
    return 0 if answer.isalnum() else len(json.loads(answer)["data"]["result"]["result"])


def has_raylet(host: Host) -> bool:
    # Nobody there collects the dead, which a look at all states would count.
    return host.run(["pgrep", "-x", "-r", "D,R,S", "raylet"])[0] == 0


def processes(lab: Lab) -> str:
    """What runs on each machine, for the one who wonders why it does."""
    return "; ".join(f"{one.name}: {one.run(['ps', '-eo', 'stat,etimes,comm'])[1]}" for one in (lab.head, *lab.workers))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ray_up_makes_a_cluster_that_featurizes_and_ray_down_ends_it(lab: Lab, tmp_path: Path) -> None:
    manifest, store = tmp_path / "m.parquet", tmp_path / "store"
    read_table(str(make_synthetic(tmp_path / "corpus", num_concepts=6, num_voices=2))).write(str(manifest))
    copy_project(lab.project, our_config(lab, manifest, store))
    lab.at_desk("sh", "-ec", "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    lab.at_desk("ray", "up", "-y", "--no-config-cache", "ray_config.yaml")
    lab.desk.start(["ray", "dashboard", "ray_config.yaml"], lab.environment, folder=lab.project)
    wait_until(lambda: num_alive(lab) == 3, "head and both workers are up")
    assert lab.at_desk(sys.executable, "-c", ASK, NODES, "nobody").strip() == "401"
    for host in (lab.head, *lab.workers):
        assert mode(host.folder / "home" / ".ray" / "auth_token") == 0o600
    submit = ["ray", "job", "submit", "--address", "http://localhost:8265", "--working-dir", "."]
    said = lab.at_desk(*submit, "--", "python", "pipelines/featurize.py")
    found = summary(said)
    assert (found["planned"], found["encoded"], found["missing"]) == (24, 24, 0)
    lab.at_desk("ray", "down", "-y", "ray_config.yaml")
    wait_until(
        lambda: not any(map(has_raylet, (lab.head, *lab.workers))),
        "every host is rid of Ray",
        otherwise=lambda: processes(lab),
    )
