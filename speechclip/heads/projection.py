"""The projection of a branch: one linear layer, or several with ReLU and dropout between them.

Source: docs/model.md, "Cascaded head", step 3. The tensors have the official names.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn

from speechclip.heads.dropout import drop


class Projection(nn.Module):
    """Several linear layers. `widths` has the input width, the hidden widths and the output width.

    The official class is `MLPLayers`. There each linear layer is followed by a ReLU and a dropout, so the tensors are
    named `sequential.0`, `sequential.3`, `sequential.6`. The `nn.Identity` modules keep these places.
    """

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.Identity(), nn.Identity()]
        self.sequential = nn.Sequential(*layers[:-2])

    def forward(
        self, values: Float[Tensor, "batch *rows width"], seeds: Int[Tensor, " batch"] | None, site: int
    ) -> Float[Tensor, "batch *rows projected"]:
        """The projected values. The dropouts use the sites `site`, `site + 1` and so on."""
        first, *others = (layer for layer in self.sequential if isinstance(layer, nn.Linear))
        values = first(values)
        for offset, layer in enumerate(others):
            values = layer(drop(values.relu(), probability=self.dropout, seeds=seeds, site=site + offset))
        return values


class Linear(nn.Linear):
    """A single linear layer that is called in the same way as a `Projection`."""

    def forward(
        self, values: Float[Tensor, "batch *rows width"], seeds: Int[Tensor, " batch"] | None = None, site: int = 0
    ) -> Float[Tensor, "batch *rows projected"]:
        """The projected values. There is no dropout."""
        return super().forward(values)


def build_projection(widths: Sequence[int], dropout: float) -> Linear | Projection:
    """A new projection. `widths` has the input width, any hidden widths and the output width.

    `build_projection((768, 512), 0.1)` has one layer, `build_projection((1024, 1024, 768), 0.1)` has two.
    """
    return Linear(widths[0], widths[1]) if len(widths) == 2 else Projection(widths, dropout)
