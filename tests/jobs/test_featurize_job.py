"""Featurize fits any number of CPUs and GPUs; that it survives kills on a real Ray stands in `test_kills_on_ray.py`."""

import pytest

from speechclip.jobs.featurize import TASKS_A_BLOCK, count_blocks, size_pools
from speechclip.records import Modality


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


def test_a_small_plan_has_a_block_for_each_task_and_a_large_one_for_every_eight() -> None:
    assert [count_blocks(num_tasks) for num_tasks in (1, 100, 3_999)] == [1, 100, 3_999]
    assert count_blocks(100_001) == 12_501
    assert min(count_blocks(num_tasks) for num_tasks in range(4_000, 60_000, 7)) == 2_000
    assert all(num_tasks / count_blocks(num_tasks) <= TASKS_A_BLOCK for num_tasks in range(1, 60_000, 7))
