"""One Linear, or several with ReLU and dropout between, under the official names of either."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn

from speechclip.heads.dropout import drop


class Projection(nn.Module):
    """Linear layers of these widths; officially `MLPLayers`, hence the places 0, 3, 6… in `sequential`."""

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
        """The projected values; each hidden layer's dropout takes a site, from `site` on."""
        first, *others = (layer for layer in self.sequential if isinstance(layer, nn.Linear))
        values = first(values)
        for offset, layer in enumerate(others):
            values = layer(drop(values.relu(), probability=self.dropout, seeds=seeds, site=site + offset))
        return values


class Linear(nn.Linear):
    """A single layer, called as `Projection` is."""

    def forward(
        self, values: Float[Tensor, "batch *rows width"], seeds: Int[Tensor, " batch"] | None = None, site: int = 0
    ) -> Float[Tensor, "batch *rows projected"]:
        """The projected values, without dropout."""
        return super().forward(values)


def build_projection(widths: Sequence[int], dropout: float) -> Linear | Projection:
    """From the first of the widths to the last, through those between."""
    return Linear(widths[0], widths[1]) if len(widths) == 2 else Projection(widths, dropout)
