"""What a head gives for a batch, whichever branch it has."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Keywords:
    """The words that a cascaded branch chose, in the slots of each row; slots from `counts` on hold nothing.

    `tokens` are places in the reduced vocabulary, `queries` what was compared with it (z_k, after BatchNorm), `chosen`
    the embeddings of the tokens taken (h_k).
    """

    tokens: Int[Tensor, "batch slots"]
    queries: Float[Tensor, "batch slots width"]
    chosen: Float[Tensor, "batch slots width"]
    counts: Int[Tensor, " batch"]


@dataclass(frozen=True)
class HeadOutput:
    """Embeddings of length one, of the branches that the head has.

    `length_errors` is each row's distance between the keywords' summed weight and their target number, where a branch
    learns how many there are (CIF).
    """

    parallel: Float[Tensor, "batch embedding"] | None = None
    cascaded: Float[Tensor, "batch embedding"] | None = None
    keywords: Keywords | None = None
    length_errors: Float[Tensor, " batch"] | None = None

    @property
    def embedding(self) -> Float[Tensor, "batch embedding"]:
        """What stands for the utterance: the parallel embedding where there is one, else the cascaded."""
        found = self.cascaded if self.parallel is None else self.parallel
        assert found is not None
        return found
