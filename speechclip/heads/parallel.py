"""The parallel head: one CLS token attends over the mixed frames and becomes the embedding (SPEECHCLIP_SPEC 2.3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.errors import InvalidInput
from speechclip.heads.dropout import drop
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
    """Frames to embeddings. Parameters carry the official names (`cls`, `self_att.model.layers.0…`, `linear_proj`).

    Only position 0 of the single layer is read, so only its query, attention and feed-forward are computed. The query
    is the same for every row and attention is linear in the values, so keys and values are never formed:
    ``q.(Wk x) = (Wk' q).x`` and ``sum a (Wv x) = Wv sum a x``. The key bias adds the same to every score and drops out.
    """

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self.config = config
        self.weighted_sum = WeightedSum(config.num_layers, config.normalize)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.num_heads, config.feed_forward_width, activation="gelu", batch_first=True
        )
        encoder = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.self_att = nn.Module()
        self.self_att.model = encoder
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
        seeds = seeds if self.training else None
        embedding: Tensor = self.linear_proj(self.attend(self.weighted_sum(frames, lengths), lengths, seeds))
        return HeadOutput(parallel=F.normalize(embedding, dim=-1))

    def attend(
        self,
        track: Float[Tensor, "batch frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """The CLS position after the transformer layer and the final LayerNorm."""
        layer, rate, cls = self._layer, self.config.dropout, self.cls[0]
        attended = drop(self._attention(track, lengths, seeds), probability=rate, seeds=seeds, site=1)
        attended = layer.norm1(cls + attended)
        inner = drop(F.gelu(layer.linear1(attended)), probability=rate, seeds=seeds, site=2)
        inner = drop(layer.linear2(inner), probability=rate, seeds=seeds, site=3)
        normed: Tensor = self.self_att.get_submodule("model.norm")(layer.norm2(attended + inner))
        return normed

    def embed_images(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "images embedding"]:
        """Image vectors projected where the head has a projection, then brought to length one, in fp32."""
        vectors = vectors.float()
        return F.normalize(vectors if self.image_projection is None else self.image_projection(vectors), dim=-1)

    @property
    def _layer(self) -> nn.TransformerEncoderLayer:
        layer = self.self_att.get_submodule("model.layers.0")
        assert isinstance(layer, nn.TransformerEncoderLayer)
        return layer

    def _attention(self, track: Tensor, lengths: Tensor, seeds: Tensor | None) -> Tensor:
        attention, cls = self._layer.self_attn, self.cls[0]
        heads = self.config.num_heads
        query, key, value = attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        question = F.linear(cls, query, query_bias).view(heads, -1) * (self.config.width // heads) ** -0.5
        folded = torch.einsum("he,hew->hw", question, key.view(heads, -1, self.config.width))
        frame_scores = torch.einsum("btw,hw->bht", track, folded)
        own_score = (folded @ cls[0]).expand(len(track), 1, heads).transpose(1, 2)
        is_padding = torch.arange(track.shape[1], device=track.device) >= lengths[:, None]
        frame_scores = frame_scores.masked_fill(is_padding[:, None], float("-inf"))
        shares = torch.cat([own_score, frame_scores], dim=2).softmax(-1)
        shares = drop(shares, probability=self.config.dropout, seeds=seeds, site=0)
        pooled = torch.bmm(shares[:, :, 1:], track) + shares[:, :, :1] * cls
        values = torch.einsum("bhw,hew->bhe", pooled, value.view(heads, -1, self.config.width))
        values = values + shares.sum(-1, keepdim=True) * value_bias.view(heads, -1)
        output: Tensor = attention.out_proj(values.flatten(1))
        return output
