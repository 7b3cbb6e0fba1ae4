"""Exact search: the rows of a matrix nearest to a query by cosine, all of them compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from speechclip.errors import InvalidInput


@dataclass(frozen=True)
class Neighbour:
    """One answer: its key and its cosine with the query, from -1 to 1."""

    key: str
    score: float


class ExactIndex:
    """Unit vectors by key. At 600,000 captions of width 512 this is 1.2 GB and one pass of memory a query."""

    def __init__(self, keys: Sequence[str], vectors: Float[np.ndarray, "keys width"]) -> None:
        if len(keys) != len(vectors):
            raise InvalidInput(f"{len(keys)} keys for {len(vectors)} vectors")
        self.keys = list(keys)
        self._vectors = unit(vectors)

    def search(self, query: Float[np.ndarray, " width"], k: int) -> list[Neighbour]:
        """The `k` nearest, best first; equal scores in the order of their keys' rows."""
        if query.shape != self._vectors.shape[1:]:
            raise InvalidInput(f"a query of width {query.shape} for vectors of width {self._vectors.shape[1:]}")
        scores = self._vectors @ unit(query[None])[0]
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [Neighbour(self.keys[row], float(scores[row])) for row in best]


def unit(vectors: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Each row brought to length one, in fp32; a row of zeros stays."""
    rows = vectors.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
