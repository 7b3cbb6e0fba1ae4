"""The attention blocks of the heads: learned rows (CLS) attend to the frames of an utterance.

Sources: docs/model.md, "Parallel head" and docs/model.md, "Cascaded head".

A head reads the CLS rows only, so only they are computed. The keys and values of the frames are not computed either,
because the CLS rows q are the same for every utterance and attention is linear in the values:

    q . (Wk x_t)               = (Wk' q) . x_t
    sum over t of a_t (Wv x_t) = Wv (sum over t of a_t x_t)

The bias of the keys adds the same number to every score, so the softmax removes it.

In all signatures, `lengths` has the number of frames of each utterance in the batch. `seeds` has one 32-bit number for
each utterance and switches dropout on; None switches it off (`dropout.drop`).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.heads.dropout import drop

# The places of dropout in a block: attention weights, attention output, inner layer and outer layer. The numbers of a
# head's other parts start after them.
_SHARES, _ATTENDED, _INNER, _OUTER = range(4)


class AttentionBlock(nn.Module):
    """Self-attention, a residual connection and a LayerNorm: ``LN(attention(S) + S)``, for S = [cls; frames].

    Dropout acts on the attention weights only. The official class is `MultiheadAttentionAndNorm`, and the attribute
    names are those of its tensors in a checkpoint. Source: docs/model.md, "Cascaded head".
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.multihead_attn_layer = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.attentionBlock_Norm = nn.LayerNorm(width)

    def forward(
        self,
        cls: Float[Tensor, "queries width"],
        track: Float[Tensor, "batch frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch queries width"]:
        """The CLS rows after the block. Frames after an utterance's length have no effect."""
        attended = attend_cls(self.multihead_attn_layer, cls, track, lengths, probability=self.dropout, seeds=seeds)
        normed: Tensor = self.attentionBlock_Norm(attended + cls)
        return normed

    def whole(
        self,
        rows: Float[Tensor, "batch rows width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch rows width"]:
        """All rows after the block, for heads that read the frames too (CIF). Ignore the rows after a length."""
        attention = self.multihead_attn_layer
        joined = F.linear(rows, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = joined.view(*rows.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        is_row = (torch.arange(rows.shape[1], device=rows.device) < lengths[:, None])[:, None, None]
        if seeds is None or self.dropout == 0:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=is_row)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            shares = scores.masked_fill(~is_row, float("-inf")).softmax(-1)
            mixed = drop(shares, probability=self.dropout, seeds=seeds, site=_SHARES) @ value
        normed: Tensor = self.attentionBlock_Norm(attention.out_proj(mixed.transpose(1, 2).flatten(2)) + rows)
        return normed


class TransformerBlock(nn.Module):
    """One post-norm transformer layer and a final LayerNorm, computed for the CLS rows only.

    The official class is `TransformerEncoder` with one layer. Source: docs/model.md, "Parallel head".
    """

    def __init__(self, width: int, num_heads: int, feed_forward_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        layer = nn.TransformerEncoderLayer(width, num_heads, feed_forward_width, activation="gelu", batch_first=True)
        self.model = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(
        self,
        cls: Float[Tensor, "queries width"],
        track: Float[Tensor, "batch frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch queries width"]:
        """The CLS rows after the layer and the final LayerNorm. Frames after an utterance's length have no effect."""
        layer, rate = self.model.layers[0], self.dropout
        assert isinstance(layer, nn.TransformerEncoderLayer)
        attended = attend_cls(layer.self_attn, cls, track, lengths, probability=rate, seeds=seeds)
        attended = layer.norm1(cls + drop(attended, probability=rate, seeds=seeds, site=_ATTENDED))
        inner = drop(F.gelu(layer.linear1(attended)), probability=rate, seeds=seeds, site=_INNER)
        inner = drop(layer.linear2(inner), probability=rate, seeds=seeds, site=_OUTER)
        normed: Tensor = self.model.get_submodule("norm")(layer.norm2(attended + inner))
        return normed


def attend_cls(
    attention: nn.MultiheadAttention,
    cls: Float[Tensor, "queries width"],
    track: Float[Tensor, "batch frames width"],
    lengths: Int[Tensor, " batch"],
    *,
    probability: float,
    seeds: Int[Tensor, " batch"] | None,
) -> Float[Tensor, "batch queries width"]:
    """The output of self-attention over ``[cls; track]``, for the CLS rows only.

    It equals ``attention(S, S, S)[:, :queries]`` for S = [cls; track], with the padding of `track` masked.
    """
    heads, width, count = attention.num_heads, attention.embed_dim, len(cls)
    query, key, value = attention.in_proj_weight.view(3, heads, -1, width)
    query_bias, _, value_bias = attention.in_proj_bias.view(3, heads, 1, -1)
    # `folded` is Wk' q for each attention head and CLS row, so that its product with a frame is the frame's score.
    questions = (torch.einsum("qw,hew->hqe", cls, query) + query_bias) * (width // heads) ** -0.5
    folded = torch.einsum("hqe,hew->hqw", questions, key).flatten(0, 1)
    frame_scores = torch.einsum("btw,qw->bqt", track, folded)
    is_padding = torch.arange(track.shape[1], device=track.device) >= lengths[:, None]
    frame_scores = frame_scores.masked_fill(is_padding[:, None], float("-inf"))
    shares = torch.cat([(folded @ cls.T).expand(len(track), -1, -1), frame_scores], dim=2).softmax(-1)
    shares = drop(shares, probability=probability, seeds=seeds, site=_SHARES)
    # `pooled` is the sum of the rows with the attention weights; Wv is applied after that.
    pooled = torch.bmm(shares[:, :, count:], track) + shares[:, :, :count] @ cls
    values = torch.einsum("bhqw,hew->bhqe", pooled.view(-1, heads, count, width), value)
    values = values + shares.sum(-1).view(-1, heads, count, 1) * value_bias
    output: Tensor = attention.out_proj(values.transpose(1, 2).flatten(2))
    return output
