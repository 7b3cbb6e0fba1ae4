"""The parallel head: one learned row (CLS) attends to all frames and becomes the embedding.

Source: docs/model.md, "Parallel head".

    frames (batch, layers, frames, width)
      weighted sum of the layers      (batch, frames, width)
      attention of the CLS row        (batch, 1, width)
      linear projection, length one   (batch, embedding)
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
    """The sizes of a parallel head.

    `num_layers` and `width` are those of the frames, `image_width` is that of the image vectors. With
    `image_projection` a learned Linear brings image vectors to `embedding_width`. Without it both widths must be equal.
    """

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
            raise InvalidInput(
                f"{self.num_heads} attention heads do not divide the width {self.width}", "choose another num_heads"
            )
        if not self.image_projection and self.embedding_width != self.image_width:
            raise InvalidInput(
                f"embeddings of width {self.embedding_width} can't be compared with image vectors of width "
                f"{self.image_width}",
                "leave embedding_width out or set image_projection",
            )

    def build(self, tower: TextTower | None = None) -> "ParallelHead":
        """A new head. torch's random generator gives its weights. A parallel head does not use `tower`."""
        return ParallelHead(self)


class ParallelHead(nn.Module):
    """Makes one embedding from the frames of each utterance.

    Its parameters have the official names: `cls`, `self_att.model.layers.0…`, `linear_proj`.
    """

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
        """The embeddings, each of length one.

        `lengths` has the number of frames of each row. Frames after it have no effect, but must be finite. In train
        mode `seeds`, one 32-bit number for each row, switch dropout on. `step` is not used.
        """
        track = self.weighted_sum(frames, lengths)
        attended = self.self_att(self.cls[0], track, lengths, seeds if self.training else None)
        return HeadOutput(parallel=F.normalize(self.linear_proj(attended[:, 0]), dim=-1))

    def embed_images(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "images embedding"]:
        """Image vectors in the space of the embeddings, in fp32: projected if the head does so, then of length one."""
        vectors = vectors.float()
        return F.normalize(vectors if self.image_projection is None else self.image_projection(vectors), dim=-1)
