"""What a head needs from the other workers of a training: sums and maxima over the whole batch.

The BatchNorm of keywords uses the sums, CIF the maximum. `speechclip.training.world.World` exchanges them by torch's
process group.
"""

from typing import Protocol

from torch import Tensor


class Together(Protocol):
    """The workers of a training, for a head. All workers must call each method in the same order."""

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' `values`. Backward, each worker gets the sum of all workers' gradients."""
        ...

    def largest(self, value: int) -> int:
        """The largest of all workers' values."""
        ...


class Alone:
    """A single worker, or one that uses the statistics of its own rows only (`norm_scope: local`)."""

    def total(self, values: Tensor) -> Tensor:
        """`values` as they are."""
        return values

    def largest(self, value: int) -> int:
        """`value` as it is."""
        return value
