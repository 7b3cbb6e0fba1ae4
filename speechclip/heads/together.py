"""What a head asks of the other workers where its result depends on the whole batch (synchronised BatchNorm)."""

from typing import Protocol

from torch import Tensor


class Together(Protocol):
    """The workers of a run, as far as a head needs them; `speechclip.training.world.World` is one."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers, with a gradient that reaches every worker's own `values`."""
        ...

    def largest(self, value: int) -> int:
        """The largest of all workers' values."""
        ...


class Alone:
    """One worker, or statistics of its own rows alone."""

    def total(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def largest(self, value: int) -> int:
        """The value itself."""
        return value
