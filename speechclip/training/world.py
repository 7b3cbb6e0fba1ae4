"""The workers of one training run, and the few things they say to each other."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class World:
    """One worker's place among all: alone by default, or its rank in torch's process group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The process group that is initialised here, if there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def part(self, count: int, rank: int | None = None) -> slice:
        """This worker's share of `count` rows: contiguous, in the order of ranks, sizes one apart at most."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.size, (rank + 1) * count // self.size)

    def gather_rows(self, rows: Float[Tensor, "local width"], count: int) -> Float[Tensor, "count width"]:
        """All workers' rows in the order of ranks; `rows` is this one's `part(count)`.

        Where every worker computes the same loss from them, the mean over workers of the gradients that arrive here is
        the gradient of that loss, also for parameters that every worker uses alike (docs/model.md, "Loss").
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _GatherRows.apply(rows, count, self)  # type: ignore[no-untyped-call]
        return gathered

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers; its gradient at each worker's own `values` is the sum of all workers' gradients."""
        if self.size == 1:
            return values
        summed: Tensor = _Total.apply(values)  # type: ignore[no-untyped-call]
        return summed

    def largest(self, value: int) -> int:
        """The largest of all workers' values."""
        if self.size == 1:
            return value
        # On the device that the group's backend takes.
        said = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return int(said.item())

    def copy_first(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by worker 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the workers, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, value: int, device: torch.device | str = "cpu") -> int:
        """What worker 0 says."""
        if self.size == 1:
            return value
        said: Int[Tensor, " 1"] = torch.tensor([value], device=device)
        dist.broadcast(said, 0)
        return int(said.item())


class _GatherRows(torch.autograd.Function):
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
        # Times the size, because the parameters' gradients are averaged over the workers afterwards.
        return gradients[0][ctx.part] * ctx.world.size, None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed
