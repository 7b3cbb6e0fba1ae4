"""Two workers of a training as two threads. They test that both halves of a batch give what the whole batch gives.

The threads stand in for processes with torch's process group (`speechclip.training.world.World`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Worker:
    """One of the two workers. The caller adds up the gradients of both workers' parameters."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: dict[int, Any]) -> None:
        self.rank, self.barrier, self.board = rank, barrier, board

    def total(self, values: Tensor) -> Tensor:
        return _Total.apply(values, self)

    def largest(self, value: int) -> int:
        return max(self.exchange(value))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of both workers. Only this worker's rows have a gradient."""
        parts = self.exchange(rows.detach())
        parts[self.rank] = rows
        return torch.cat(parts)

    def exchange(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait()
        both = [self.board[0], self.board[1]]
        self.barrier.wait()
        return both


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, worker: Worker) -> Tensor:
        ctx.worker = worker
        return sum(worker.exchange(values.detach()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum(ctx.worker.exchange(gradients[0])), None


def run_two(work: Callable[[Worker], Any]) -> list[Any]:
    """The result of `work` for each worker. Both run at the same time."""
    barrier, board = threading.Barrier(2, timeout=60), {}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Worker(rank, barrier, board) for rank in range(2)]))
