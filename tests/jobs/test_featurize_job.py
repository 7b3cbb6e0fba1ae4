"""Featurize fits on any number of CPUs and GPUs. `tests/road/test_kills_on_ray.py` kills its processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.stores import synthetic

from speechclip.jobs.featurize import TASKS_A_BLOCK, Pools, count_blocks, size_pools
from speechclip.records import Modality

TASKS = pytest.mark.parametrize(
    "num_tasks",
    [{"speech": 100, "image": 9, "text": 3}, {"speech": 1}, {"image": 4, "text": 1}, {"speech": 2, "image": 500}],
)


def check(pools: Pools, num_cpus: float, num_gpus: int, num_tasks: dict[Modality, int]) -> float:
    """Check what must be true of any pools. Returns the CPUs that the encoders leave."""
    num_actors = sum(pools.actors.values())
    assert pools.actors.keys() == num_tasks.keys()
    assert all(1 <= pools.actors[modality] <= num_tasks[modality] for modality in num_tasks)
    assert num_actors * pools.actor_gpus <= num_gpus
    assert pools.actor_cpus != pools.decode_cpus, "Ray Data would fuse decode into the actor"
    return num_cpus - num_actors * pools.actor_cpus


def test_a_small_plan_has_a_block_for_each_task_and_a_large_one_for_every_eight() -> None:
    assert [count_blocks(num_tasks) for num_tasks in (1, 100, 3_999)] == [1, 100, 3_999]
    assert count_blocks(100_001) == 12_501
    assert min(count_blocks(num_tasks) for num_tasks in range(4_000, 60_000, 7)) == 2_000
    assert all(num_tasks / count_blocks(num_tasks) <= TASKS_A_BLOCK for num_tasks in range(1, 60_000, 7))


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 16, 64])
@TASKS
def test_pools_fit_beside_decode_tasks_even_when_half_of_the_cpus_are_lost(
    num_cpus: int, num_tasks: dict[Modality, int]
) -> None:
    pools = size_pools(num_cpus, 0, num_tasks)
    assert pools.decode_tasks is not None
    assert check(pools, num_cpus / 2, 0, num_tasks) >= pools.decode_tasks * pools.decode_cpus


@pytest.mark.parametrize("num_nodes", [2, 3, 5, 8])
@pytest.mark.parametrize("node_cpus", [1, 2, 8])
@TASKS
def test_pools_fit_node_by_node_when_one_of_several_is_lost(
    num_nodes: int, node_cpus: int, num_tasks: dict[Modality, int]
) -> None:
    pools = size_pools(num_nodes * node_cpus, 0, num_tasks)
    left = [float(node_cpus)] * (num_nodes - 1)
    # The worst order: each encoder on the node with most free CPUs, then decoding on the rest.
    for _ in range(sum(pools.actors.values())):
        left[left.index(max(left))] -= pools.actor_cpus
    assert min(left) >= 0
    assert max(left) >= pools.decode_cpus


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 16, 64])
@pytest.mark.parametrize("num_gpus", [1, 8])
@TASKS
def test_on_a_cluster_with_gpus_decoding_uses_all_cpus_also_those_that_come_later(
    num_cpus: int, num_gpus: int, num_tasks: dict[Modality, int]
) -> None:
    pools = size_pools(num_cpus, num_gpus, num_tasks)
    assert pools.decode_tasks is None, "without a bound, so that nodes of the autoscaler decode too"
    assert check(pools, num_cpus, num_gpus, num_tasks) >= pools.decode_cpus
    assert sum(pools.actors.values()) * pools.actor_cpus <= max(0.75 * num_cpus, 0.1)


def test_three_speech_encoders_share_a_gpu_that_has_three_cpus() -> None:
    many: dict[Modality, int] = {"speech": 100, "image": 9, "text": 3}
    assert size_pools(16, 1, many).actors == {"speech": 3, "image": 1, "text": 1}
    assert size_pools(16, 2, many).actors == {"speech": 6, "image": 2, "text": 2}
    assert size_pools(4, 2, many).actors == {"speech": 4, "image": 2, "text": 2}


@TASKS
def test_a_node_of_one_cpu_decodes_beside_its_gpus_encoders(num_tasks: dict[Modality, int]) -> None:
    pools = size_pools(4, 4, num_tasks)
    assert len(num_tasks) * pools.actor_cpus + pools.decode_cpus <= 1


def test_a_process_that_decodes_loads_no_torch() -> None:
    """Loading torch takes longer than the rest of its start, and Ray starts such processes often."""
    shown = "import sys, speechclip.jobs.featurize; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_on_a_node_with_a_gpu_starts_its_encoders(tmp_path: Path) -> None:
    """Ray believes that there is a GPU, and the toy encoder needs none. `test_on_gpu.py` uses a real one."""
    synthetic().write(str(tmp_path / "m.parquet"))
    options = ["--manifest", str(tmp_path / "m.parquet"), "--store", str(tmp_path / "store"), "--json"]
    options += ["--speech", "toy", "--image", "toy", "--text", "toy"]
    run = (
        "import ray; from speechclip.cli import main; "
        "ray.init('local', num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False); "
        f"main({['featurize', *options]!r})"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["encoded"] == 30
