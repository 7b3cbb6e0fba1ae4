"""The output of a head for a batch: embeddings and keywords."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Keywords:
    """The words that a cascaded branch heard in each row. Row b has `counts[b]` of them; the slots after that are zero.

    `queries` are the vectors z_k after BatchNorm, which are compared with the vocabulary. `tokens` are the places of
    the chosen tokens in the vocabulary, `chosen` their token embeddings h_k (docs/model.md, "Cascaded head").
    """

    tokens: Int[Tensor, "batch slots"]
    queries: Float[Tensor, "batch slots width"]
    chosen: Float[Tensor, "batch slots width"]
    counts: Int[Tensor, " batch"]


@dataclass(frozen=True)
class HeadOutput:
    """The embeddings of a batch, each row of length one, for the branches that the head has.

    Heads with CIF also give `length_errors`: for each row the difference between the sum of its frames' weights and its
    target number of keywords. It is a part of their loss.
    """

    parallel: Float[Tensor, "batch embedding"] | None = None
    cascaded: Float[Tensor, "batch embedding"] | None = None
    keywords: Keywords | None = None
    length_errors: Float[Tensor, " batch"] | None = None

    @property
    def embedding(self) -> Float[Tensor, "batch embedding"]:
        """The embedding of the utterance: the parallel one if the head has it, else the cascaded one."""
        found = self.cascaded if self.parallel is None else self.parallel
        assert found is not None
        return found
