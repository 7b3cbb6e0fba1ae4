"""`ray job submit` as a user types it: a head with its dashboard, the bare command, settings from ray_config.yaml."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table

PROJECT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a head of two logical CPUs."""
    gcs, dashboard, *agent = free_ports(5)
    folder = f"/tmp/sc-head-{os.getpid()}"
    # A job's `python` is the one on the head's PATH.
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    command = [RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    # Another Ray on this machine, even a private one, already holds the agent's usual ports.
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    command += [f"--{name}={port}" for name, port in zip(names, agent, strict=True)]
    command += ["--include-dashboard=true", f"--temp-dir={folder}", "--object-store-memory=500000000"]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until_up(address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_up(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no dashboard at {address}")


@pytest.mark.slow
@pytest.mark.ray
def test_the_bare_command_featurizes_what_ray_config_yaml_names(tmp_path: Path, head: str) -> None:
    manifest, store = tmp_path / "m.parquet", tmp_path / "store"
    read_table(str(make_synthetic(tmp_path / "corpus", num_concepts=6, num_voices=2))).write(str(manifest))
    working_dir = tmp_path / "project"
    for name in ("speechclip", "pipelines"):
        shutil.copytree(PROJECT / name, working_dir / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = yaml.safe_load((PROJECT / "ray_config.yaml").read_text())
    config["metadata"]["speechclip"] |= {
        "manifest": str(manifest), "store": str(store), "speech": "toy", "image": "toy", "text": "toy",
    }  # fmt: skip
    (working_dir / "ray_config.yaml").write_text(yaml.safe_dump(config))
    submit = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", "python", "pipelines/featurize.py"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    for encoded in (24, 0):
        done = run_when_ready(submit, working_dir, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"planned"')))
        assert (summary["planned"], summary["encoded"], summary["missing"]) == (24, encoded, 0)


def run_when_ready(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submit again while the node's agent, which starts after the dashboard, is not there yet."""
    for _ in range(8):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        if "No available agent" not in done.stderr:
            return done
        time.sleep(2)
    return done
