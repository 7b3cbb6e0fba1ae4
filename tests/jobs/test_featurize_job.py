"""Featurize fits any number of CPUs and GPUs; that it survives kills on a real Ray stands in `test_kills_on_ray.py`."""

import pytest

from speechclip.jobs.featurize import size_pools
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
