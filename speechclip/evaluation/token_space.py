"""Which tokens of the reduced vocabulary are nearest to a vector.

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
    """Scores vectors against the token embeddings of the reduced vocabulary.

    `scoring` is one of the two rules of the official code. `cosine`: the cosine to each token. `pseudo-inverse`: the
    coefficients of the vector as a sum of token embeddings, from the pseudo-inverse of their matrix.
    """

    def __init__(self, embeddings: Float[Tensor, "vocabulary width"], scoring: Scoring = "cosine") -> None:
        self.scoring, self._embeddings = scoring, embeddings.detach().double()
        self._unit = F.normalize(self._embeddings, dim=1, eps=1e-8)

    def cosines(self, vectors: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors vocabulary"]:
        """The cosine of each vector to each token."""
        # The sums are in fp64 and rounded to fp32. So equal tokens have equal scores at every place of the matrix.
        return (F.normalize(vectors.double(), dim=1, eps=1e-8) @ self._unit.T).float()

    def scores(self, vectors: Float[Tensor, "vectors width"]) -> Float[Tensor, "vectors vocabulary"]:
        """The score of each token for each vector, by the rule of `scoring`. The nearest token has the highest."""
        if self.scoring == "cosine":
            return self.cosines(vectors)
        return (vectors.double() @ self._inverse.T).float()

    @functools.cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self._embeddings.T)
        return inverse


def top_positions(scores: Float[Tensor, "rows columns"], count: int) -> Int[Tensor, "rows count"]:
    """The columns of the `count` highest scores of each row, highest first. Of equal scores the first column wins."""
    lowest = scores.topk(count, dim=1)
    # topk promises no order among equal scores, nor which of them it takes last.
    places = lowest.indices.sort(dim=1).values
    order = scores.gather(1, places).argsort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    is_tied = (scores >= lowest.values[:, -1:]).sum(1) > count
    if is_tied.any():
        places[is_tied] = scores[is_tied].argsort(dim=1, descending=True, stable=True)[:, :count]
    return places
