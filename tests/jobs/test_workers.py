"""How many workers fit on which nodes, by plain numbers. `tests/nodes` starts them on a real cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from speechclip.jobs.nodes import Node
from speechclip.jobs.workers import FailureCount, WorkerCount, fitting_cpus, needs_gpus

NODES = some.lists(some.builds(Node, cpus=some.integers(0, 16), gpus=some.integers(0, 8)), max_size=5)


@pytest.mark.parametrize(
    ("cpus", "workers", "share"),
    [
        ([2], 2, 1.0),
        ([2], 4, 0.5),
        ([8, 8], 2, 1.0),
        # Three workers can't have two thirds of a CPU each: one of the two nodes takes two of them.
        ([1, 1], 3, 0.5),
        ([0, 1, 1], 2, 1.0),
        ([1], 2, 0.5),
        ([0], 1, 0.0),
        ([], 1, 0.0),
    ],
)
def test_workers_share_the_cpus_of_each_node(cpus: list[float], workers: int, share: float) -> None:
    assert fitting_cpus([Node(each) for each in cpus], workers, use_gpu=False) == share


@given(there=NODES, workers=some.integers(1, 20), use_gpu=some.booleans())
def test_workers_fit_with_this_share_and_not_with_a_larger_one(there: list[Node], workers: int, use_gpu: bool) -> None:
    def num_fitting(share: float) -> int:
        return sum(min(int(node.cpus / share + 1e-9), int(node.gpus) if use_gpu else workers) for node in there)

    share = fitting_cpus(there, workers, use_gpu)
    if share:
        assert num_fitting(share) >= workers
    assert share == 1 or num_fitting(share + 0.002) < workers


def test_each_worker_needs_a_gpu_on_its_own_node() -> None:
    there = [Node(cpus=8, gpus=1), Node(cpus=2, gpus=1), Node(cpus=16)]
    assert fitting_cpus(there, 2, use_gpu=True) == 1.0
    assert fitting_cpus(there, 3, use_gpu=True) == 0.0


def test_on_a_shared_cluster_one_gpu_is_enough_to_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    two = WorkerCount(wanted=2, minimum=2, node_wait_seconds=0)
    there = [Node(cpus=8, gpus=1)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not needs_gpus(two, there), "a private Ray gets no second GPU"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert needs_gpus(two, there), "the second node is on its way"
    assert not needs_gpus(two, [Node(cpus=8)])


def test_failures_are_counted_in_a_row_without_a_new_checkpoint() -> None:
    failures = FailureCount(step=0)
    # A long run that loses a node after every checkpoint goes on.
    assert not any(failures.add(step) for step in range(10, 100, 10))
    # A bug makes it fail again and again after the checkpoint at step 90. The third failure is one too many.
    assert [failures.add(90), failures.add(90)] == [False, True]
