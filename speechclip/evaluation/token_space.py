"""The reduced vocabulary as a space: which of its tokens lie nearest to a vector.

Source: docs/model.md, "Evaluation protocol".
"""

import functools
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

NUM_NEIGHBOURS = 5
Scoring = Literal["cosine", "pseudo-inverse"]


class TokenSpace:
    """The reduced vocabulary's token embeddings, asked which of them are nearest to a vector.

    `pseudo-inverse` scores a vector by its coefficients on the tokens, the pseudo-inverse of their matrix, instead of
    by cosines: the other choice of the official code.
    """

    def __init__(self, embeddings: Float[Tensor, "vocabulary width"], scoring: Scoring = "cosine") -> None:
        self.scoring, self._embeddings = scoring, embeddings.detach().double()
        self._unit = F.normalize(self._embeddings, dim=1, eps=1e-8)

    def cosines(self, vectors: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors vocabulary"]:
        """The cosine of each vector to each token."""
        # Summed in fp64, compared in fp32: so equal tokens tie wherever they stand.
        return (F.normalize(vectors.double(), dim=1, eps=1e-8) @ self._unit.T).float()

    def scores(self, vectors: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors vocabulary"]:
        """What ranks the tokens near each vector."""
        if self.scoring == "cosine":
            return self.cosines(vectors)
        return (vectors.double() @ self._inverse.T).float()

    @functools.cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self._embeddings.T)
        return inverse


def first_places(scores: Float[Tensor, "rows columns"], count: int) -> Int[Tensor, "rows count"]:
    """The columns of the `count` highest scores, falling; equal scores by rising column."""
    lowest = scores.topk(count, dim=1)
    # topk promises no order among equals, nor which of them it takes at its end.
    places = lowest.indices.sort(dim=1).values
    order = scores.gather(1, places).argsort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    is_tied = (scores >= lowest.values[:, -1:]).sum(1) > count
    if is_tied.any():
        places[is_tied] = scores[is_tied].argsort(dim=1, descending=True, stable=True)[:, :count]
    return places
