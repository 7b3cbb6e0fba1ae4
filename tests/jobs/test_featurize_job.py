"""Featurize on a real local Ray: it fits any number of CPUs, survives a kill and equals the run without Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from feature_sets import content

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.jobs.featurize import size_pools
from speechclip.records import Modality
from speechclip.store import FeatureStore

TIMEOUT_SECONDS = 240


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 16, 64])
@pytest.mark.parametrize("num_gpus", [0, 1, 8])
@pytest.mark.parametrize(
    "num_tasks",
    [{"speech": 100, "image": 9, "text": 3}, {"speech": 1}, {"image": 4, "text": 1}, {"speech": 2, "image": 500}],
)
def test_pools_always_fit_beside_a_decode_task(num_cpus: int, num_gpus: int, num_tasks: dict[Modality, int]) -> None:
    pools = size_pools(num_cpus, num_gpus, num_tasks)
    num_actors = sum(pools.actors.values())
    assert pools.actors.keys() == num_tasks.keys()
    assert all(1 <= pools.actors[modality] <= num_tasks[modality] for modality in num_tasks)
    assert num_actors * pools.actor_cpus + pools.decode_tasks * pools.decode_cpus <= num_cpus
    assert num_actors * pools.actor_gpus <= num_gpus
    assert pools.actor_cpus != pools.decode_cpus, "Ray Data would fuse decode into the actor"


def start(manifest: Path, store: Path, num_cpus: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "speechclip", "featurize", "--manifest", str(manifest), "--store", str(store)]
    command += [
        "--speech",
        "toy",
        "--image",
        "toy",
        "--text",
        "toy",
        "--codec",
        "fp32",
        "--num-cpus",
        str(num_cpus),
        "--json",
    ]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, err
    summary: dict[str, int] = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1, "--json gives the line alone"
    return summary


@pytest.mark.ray
def test_a_killed_run_is_completed_by_the_next_and_equals_the_one_without_ray(tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    read_table(str(make_synthetic(tmp_path / "corpus", num_concepts=8, num_voices=3))).write(str(manifest))
    small = ["--set", "featurize.tasks.shard_items=2", "--set", "featurize.tasks.chunk_rows=2"]
    store = tmp_path / "store"
    first = start(manifest, store, 2, *small, "--set", "featurize.commit_seconds=0")
    wait_for_commits(FeatureStore(str(store)), 2, first)
    kill_tree(first)
    left = finish(start(manifest, store, 1, *small))
    assert left["missing"] == left["rejected"] == 0
    assert left["stored_before"] > 0
    assert left["planned"] == left["stored_before"] + left["encoded"] == 24 + 8 + 8
    snapshot = FeatureStore(str(store)).snapshot()
    assert sum(len(snapshot.feature_set(info.fingerprint)) for info in snapshot.feature_sets()) == 40
    quiet = finish(start(manifest, tmp_path / "quiet", 2, "--inline"))
    assert quiet["encoded"] == 40
    assert content(snapshot) == content(FeatureStore(str(tmp_path / "quiet")).snapshot())
    assert finish(start(manifest, store, 2))["encoded"] == 0


def wait_for_commits(store: FeatureStore, version: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if store.exists() and store.snapshot().version >= version:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    raise AssertionError(f"no catalog version {version} within {TIMEOUT_SECONDS} s")


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver first, then to Ray's processes, which outlive it."""
    others = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for other in others:
        if other.is_running():
            other.kill()
    process.communicate()
