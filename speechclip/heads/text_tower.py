"""CLIP's text encoder as a cascaded head uses it: frozen, over a reduced vocabulary, fed with keywords."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn


class TextTower(nn.Module):
    """The text half of a CLIP, none of whose numbers is trained or stored with a head.

    `embeddings` are the reduced vocabulary's rows of the token embedding, in the vocabulary's order; `barred` are the
    places that no keyword may take (padding, start and end).
    """

    embeddings: Float[Tensor, "vocabulary width"]
    barred: Int[Tensor, " barred"]

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        num_heads: int,
        is_quick_gelu: bool,
        vocabulary: Sequence[int],
        start: int = 49406,
        end: int = 49407,
        padding: int = 0,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(
        self, chosen: Float[Tensor, "batch slots width"], counts: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch joint"]:
        """Text embeddings, not normalised, of start, each row's first `counts` keywords, and end, read there."""
        raise NotImplementedError
