"""Two workers, as two processes, exchange what one worker would compute alone."""

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from speechclip.training.world import World

ROWS = torch.arange(10, dtype=torch.float32).reshape(5, 2)
WEIGHTS = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 4.0], [2.0, 2.0], [-1.0, 1.0]])


def exchange() -> dict[str, Any]:
    """What one worker gets from each of World's methods."""
    world = World.current()
    part = world.part(len(ROWS))
    own = ROWS[part].clone().requires_grad_()
    gathered = world.gather_rows(own, len(ROWS))
    (gathered * WEIGHTS).sum().backward()
    summand = ROWS[world.rank].clone().requires_grad_()
    total = world.total(summand)
    # Each worker weighs the sum in its own way.
    (total * WEIGHTS[world.rank]).sum().backward()
    averaged, copied = [ROWS[world.rank].clone(), torch.tensor([float(world.rank)])], torch.tensor([world.rank + 7.0])
    world.average(averaged)
    world.copy_first([copied])
    assert own.grad is not None
    assert summand.grad is not None
    return {
        "gathered": gathered.detach(), "own": own.grad, "total": total.detach(), "summand": summand.grad,
        "averaged": averaged, "copied": copied, "largest": world.largest(3 - world.rank),
        "agreed": world.agree(world.rank),
    }  # fmt: skip


def work(rank: int, meeting: str) -> dict[str, Any]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        return exchange()
    finally:
        torch.distributed.destroy_process_group()


def work_twice(rank: int, folder: Path) -> None:
    work(rank, str(folder / "first-meeting"))
    torch.save(work(rank, str(folder / "second-meeting")), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers gets in its second process group."""
    folder = tmp_path_factory.mktemp("world")
    other = multiprocessing.get_context("spawn").Process(target=work_twice, args=(1, folder))
    other.start()
    work_twice(0, folder)
    other.join(60)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_gathered_rows_are_in_the_order_of_ranks_and_their_gradient_is_that_of_one_worker(found: list[dict[str, Any]]):
    for rank, worker in enumerate(found):
        torch.testing.assert_close(worker["gathered"], ROWS)
        # Times two: the mean over both workers divides by two.
        torch.testing.assert_close(worker["own"], 2 * WEIGHTS[World(rank, 2).part(len(ROWS))])


def test_a_total_is_the_sum_and_its_gradient_the_sum_of_all_workers_gradients(found: list[dict[str, Any]]):
    for worker in found:
        torch.testing.assert_close(worker["total"], ROWS[0] + ROWS[1])
        torch.testing.assert_close(worker["summand"], WEIGHTS[0] + WEIGHTS[1])


def test_means_copies_and_decisions_are_the_same_on_every_worker(found: list[dict[str, Any]]):
    for worker in found:
        torch.testing.assert_close(worker["averaged"], [(ROWS[0] + ROWS[1]) / 2, torch.tensor([0.5])])
        torch.testing.assert_close(worker["copied"], torch.tensor([7.0]))
        assert (worker["largest"], worker["agreed"]) == (3, 0)


def test_one_worker_gets_back_what_it_gave():
    world = World.current()
    assert world == World(0, 1)
    assert world.gather_rows(ROWS, len(ROWS)) is ROWS
    assert world.total(ROWS) is ROWS
    assert (world.largest(5), world.agree(6)) == (5, 6)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9])
def test_the_parts_cover_all_rows_once_and_differ_by_one_at_most(count: int):
    parts = [World(rank, 4).part(count) for rank in range(4)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
