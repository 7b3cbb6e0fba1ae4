"""CLIP's text encoder, which makes an embedding from the keywords of a head.

Source: docs/model.md, "Cascaded head", step 8.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.errors import InvalidInput

_BLOCKS = "transformer.resblocks."
_NAME_A_CLIP = "name a plain CLIP model"
# The tensors of a block of a plain CLIP. A block with other tensors, such as a layer scale, computes something else.
_IN_A_BLOCK = {
    f"{part}.{kind}"
    for part in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
} | {"attn.in_proj_weight", "attn.in_proj_bias"}


class TextTower(nn.Module):
    """The frozen text encoder of a CLIP. It reads token embeddings instead of token ids.

    `weights` has tensors by open_clip's names; those of the image encoder are ignored. `vocabulary` has the token ids
    from which a head chooses, in their order. It must hold `start`, `end` and `padding`.

    `embeddings` are the token embeddings of the vocabulary. `excluded` are the places of padding, start and end, which
    are never chosen as a keyword. No tensor is trained or stored with the head.
    """

    embeddings: Float[Tensor, "vocabulary width"]
    excluded: Int[Tensor, " excluded"]
    positions: Float[Tensor, "context width"]
    ends: Float[Tensor, "2 width"]
    norm_weight: Float[Tensor, " width"]
    norm_bias: Float[Tensor, " width"]
    projection: Float[Tensor, "width joint"] | None
    projection_bias: Float[Tensor, " joint"] | None

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
        missing = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"} - set(weights)
        if missing:
            raise InvalidInput(
                f"these weights are no text encoder of CLIP: {', '.join(sorted(missing))} missing", _NAME_A_CLIP
            )
        embeddings = weights["token_embedding.weight"][torch.tensor(vocabulary)]
        places = [list(vocabulary).index(token) for token in (padding, start, end)]
        projection, bias = _projection(weights)
        for name, value in {
            "embeddings": embeddings,
            "positions": weights["positional_embedding"],
            "ends": embeddings[places[1:]],
            "norm_weight": weights["ln_final.weight"],
            "norm_bias": weights["ln_final.bias"],
            "projection": projection,
            "projection_bias": bias,
        }.items():
            self.register_buffer(name, None if value is None else _frozen(value), persistent=False)
        self.register_buffer("excluded", torch.tensor(sorted(places)), persistent=False)
        num_blocks = len({name.split(".")[2] for name in weights if name.startswith(_BLOCKS)})
        self.blocks = nn.ModuleList(
            _Block(weights, f"{_BLOCKS}{index}.", num_heads, is_quick_gelu) for index in range(num_blocks)
        )

    @property
    def joint_width(self) -> int:
        """The width of the text embeddings, which is that of CLIP's joint space."""
        return self.embeddings.shape[1] if self.projection is None else self.projection.shape[1]

    @property
    def most_keywords(self) -> int:
        """The largest number of keywords that fit between start and end."""
        return len(self.positions) - 2

    def forward(
        self, chosen: Float[Tensor, "batch slots width"], counts: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch joint"]:
        """The text embedding of each row's first `counts` keywords. It is not normalised.

        Row b becomes the text [start, its keywords, end]. The embedding is the output at `end`.

        Attention looks back only, so positions after `end` have no effect. So as many positions are computed as the row
        with the most keywords needs: 10 for 8 keywords, not 77.
        """
        num_slots = int(counts.max())
        start, end = self.ends
        rows = torch.cat([start.expand(len(chosen), 1, -1), chosen[:, :num_slots], end.expand(len(chosen), 1, -1)], 1)
        is_end = torch.arange(num_slots + 2, device=chosen.device) == counts[:, None] + 1
        rows = torch.where(is_end[:, :, None], end, rows) + self.positions[: num_slots + 2]
        for block in self.blocks:
            rows = block(rows)
        read = F.layer_norm(rows[is_end], self.norm_weight.shape, self.norm_weight, self.norm_bias)
        if self.projection is None:
            return read
        read = read @ self.projection
        return read if self.projection_bias is None else read + self.projection_bias


class _Block(nn.Module):
    """One pre-norm transformer layer whose attention looks back only."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, num_heads: int, is_quick_gelu: bool) -> None:
        super().__init__()
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if own.keys() != _IN_A_BLOCK:
            odd = ", ".join(sorted(own.keys() ^ _IN_A_BLOCK))
            raise InvalidInput(
                f"these weights are no text encoder of a plain CLIP: in {prefix} {odd} missing or unknown", _NAME_A_CLIP
            )
        for name, value in own.items():
            self.register_buffer(name.replace(".", "_"), _frozen(value), persistent=False)
        self.num_heads, self.is_quick_gelu = num_heads, is_quick_gelu

    def forward(self, rows: Float[Tensor, "batch positions width"]) -> Float[Tensor, "batch positions width"]:
        rows = rows + self._attention(self._norm("ln_1", rows))
        inner = self._linear("mlp_c_fc", self._norm("ln_2", rows))
        inner = inner * torch.sigmoid(1.702 * inner) if self.is_quick_gelu else F.gelu(inner)
        return rows + self._linear("mlp_c_proj", inner)

    def _attention(self, rows: Tensor) -> Tensor:
        joined = F.linear(rows, self.get_buffer("attn_in_proj_weight"), self.get_buffer("attn_in_proj_bias"))
        query, key, value = joined.view(*rows.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear("attn_out_proj", mixed.transpose(1, 2).flatten(2))

    def _norm(self, name: str, rows: Tensor) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        return F.layer_norm(rows, weight.shape, weight, bias)

    def _linear(self, name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"))


def _projection(weights: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """The matrix and the bias of ``rows @ matrix + bias``. open_clip's models have a matrix, a Linear or neither."""
    if "text_projection.weight" in weights:
        return weights["text_projection.weight"].T, weights.get("text_projection.bias")
    return weights.get("text_projection"), None


def _frozen(value: Tensor) -> Tensor:
    return value.detach().float().clone(memory_format=torch.contiguous_format)
