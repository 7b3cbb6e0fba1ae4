"""Exact search: the vectors with the highest cosine to a query, found by comparing all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from speechclip.errors import InvalidInput


@dataclass(frozen=True)
class Neighbour:
    """One vector that was found: its key, and its cosine to the query from -1 to 1."""

    key: str
    score: float


class ExactIndex:
    """Vectors by key, held in memory. For 600,000 vectors of width 512 these are 1.2 GB, read once a query."""

    def __init__(self, keys: Sequence[str], vectors: Float[np.ndarray, "keys width"]) -> None:
        if len(keys) != len(vectors):
            raise InvalidInput(f"{len(keys)} keys for {len(vectors)} vectors", "give one key for each vector")
        self.keys = list(keys)
        self._vectors = unit(vectors)

    def search(self, query: Float[np.ndarray, " width"], k: int) -> list[Neighbour]:
        """The `k` vectors with the highest cosine, highest first. Equal ones keep the order of the index."""
        if query.shape != self._vectors.shape[1:]:
            raise InvalidInput(
                f"the query has shape {query.shape}, the vectors of the index have {self._vectors.shape[1:]}",
                "make the query by the same run as the index",
            )
        scores = self._vectors @ unit(query[None])[0]
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [Neighbour(self.keys[row], float(scores[row])) for row in best]


def unit(vectors: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Each row divided by its length, in fp32. A row of zeros stays as it is."""
    rows = vectors.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
