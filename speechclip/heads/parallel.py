"""The parallel head: one CLS token attends over the mixed frames and becomes the embedding.

Source: docs/model.md, "Parallel head".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.errors import InvalidInput
from speechclip.heads.attention import TransformerBlock
from speechclip.heads.output import HeadOutput
from speechclip.heads.text_tower import TextTower
from speechclip.heads.weighted_sum import Normalization, WeightedSum
from speechclip.records import Record


class ParallelConfig(Record, frozen=True, tag="parallel"):
    """The sizes of a parallel head. Without `image_projection` the image vectors stay as they are."""

    num_layers: int
    width: int
    image_width: int
    embedding_width: int
    feed_forward_width: int
    num_heads: int = 8
    dropout: float = 0.1
    normalize: Normalization = "none"
    image_projection: bool = False

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise InvalidInput(f"{self.num_heads} attention heads do not divide the width {self.width}; change either")
        if not self.image_projection and self.embedding_width != self.image_width:
            raise InvalidInput(
                f"embeddings of width {self.embedding_width} can't meet image vectors of width {self.image_width}: "
                "leave embedding_width out or set image_projection"
            )

    def build(self, tower: TextTower | None = None) -> "ParallelHead":
        """A new head, its weights drawn from torch's generator; it needs no text tower."""
        return ParallelHead(self)


class ParallelHead(nn.Module):
    """Frames to embeddings. Parameters carry the official names (`cls`, `self_att.model.layers.0…`, `linear_proj`)."""

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self.config = config
        self.weighted_sum = WeightedSum(config.num_layers, config.normalize)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width))
        self.self_att = TransformerBlock(config.width, config.num_heads, config.feed_forward_width, config.dropout)
        self.linear_proj = nn.Linear(config.width, config.embedding_width)
        self.image_projection = (
            nn.Linear(config.image_width, config.embedding_width) if config.image_projection else None
        )

    def forward(
        self,
        frames: Float[Tensor, "batch layers frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None = None,
        *,
        step: int | None = None,
    ) -> HeadOutput:
        """Embeddings of length one. `seeds` switch dropout on, in train mode alone: one 32-bit number a row.

        Frames past a row's length are never looked at, as long as they are finite.
        """
        track = self.weighted_sum(frames, lengths)
        attended = self.self_att(self.cls[0], track, lengths, seeds if self.training else None)
        return HeadOutput(parallel=F.normalize(self.linear_proj(attended[:, 0]), dim=-1))

    def embed_images(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "images embedding"]:
        """Image vectors projected where the head has a projection, then brought to length one, in fp32."""
        vectors = vectors.float()
        return F.normalize(vectors if self.image_projection is None else self.image_projection(vectors), dim=-1)
