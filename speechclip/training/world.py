"""The workers of one training run, and how they exchange rows, sums and decisions."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This worker's rank and the number of workers. By default there is one.

    All workers must call each method that exchanges something, in the same order, or they wait for each other for ever.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """This worker's place in torch's process group; one worker if no group is initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def part(self, count: int, rank: int | None = None) -> slice:
        """The rows, of `count`, that a worker (by default this one) computes.

        The parts are contiguous, in the order of ranks, and their sizes differ by one at most.

            >>> World(rank=1, size=2).part(9)
            slice(4, 9, None)
        """
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.size, (rank + 1) * count // self.size)

    def gather_rows(self, rows: Float[Tensor, "local width"], count: int) -> Float[Tensor, "count width"]:
        """The rows of all workers, in the order of ranks. `rows` are this worker's `part(count)`.

        The gradient is meant for a loss that every worker computes from all rows. Then the mean over the workers of
        their parameters' gradients is the gradient of that loss (docs/model.md, "Loss").
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _GatherRows.apply(rows, count, self)  # type: ignore[no-untyped-call]
        return gathered

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' `values`. Backward, each worker's gradient is the sum of all workers' gradients."""
        if self.size == 1:
            return values
        # Imported late because the module needs a torch that was built with distributed support. The group is given
        # because the default one is that of the time of the import.
        from torch.distributed.nn.functional import all_reduce

        summed: Tensor = all_reduce(values, group=dist.group.WORLD)  # type: ignore[no-untyped-call]
        return summed

    def largest(self, value: int) -> int:
        """The largest of all workers' values."""
        if self.size == 1:
            return value
        # NCCL takes tensors of the GPU only, gloo those of the CPU.
        found = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found.item())

    def copy_first(self, tensors: list[Tensor]) -> None:
        """Overwrite each tensor by that of worker 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, tensors: list[Tensor]) -> None:
        """Overwrite each tensor by its mean over all workers."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, value: int, device: torch.device | str = "cpu") -> int:
        """The value that worker 0 gave."""
        if self.size == 1:
            return value
        first: Int[Tensor, " 1"] = torch.tensor([value], device=device)
        dist.broadcast(first, 0)
        return int(first.item())


class _GatherRows(torch.autograd.Function):
    """`all_gather` of parts of unequal sizes, whose backward pass needs no communication.

    That of torch.distributed.nn sums the gradients of all workers. They are equal here, so a product does.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int, world: World) -> Tensor:
        ctx.world, ctx.part = world, world.part(count)
        sizes = [world.part(count, rank) for rank in range(world.size)]
        longest = max(part.stop - part.start for part in sizes)
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([found[: part.stop - part.start] for found, part in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # The trainer averages the gradients of parameters over the workers afterwards, which divides by the size.
        return gradients[0][ctx.part] * ctx.world.size, None, None
