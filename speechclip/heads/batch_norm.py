"""BatchNorm that brings keywords to the scale of the token embeddings (docs/model.md, "Cascaded head").

Statistics are those of the whole batch, wherever its rows are.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speechclip.heads.together import Together

KeywordNorm = Literal["each", "each-apart", "same"]
NormStart = Literal["literal", "corrected"]


class SharedBatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` over the rows of all workers."""

    running_mean: Float[Tensor, " features"]
    running_var: Float[Tensor, " features"]
    num_batches_tracked: Int[Tensor, ""]

    def __init__(self, weight: Float[Tensor, " features"], bias: Float[Tensor, " features"]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.register_buffer("running_mean", torch.zeros_like(bias))
        self.register_buffer("running_var", torch.ones_like(bias))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, rows: Float[Tensor, "rows features"], together: Together) -> Float[Tensor, "rows features"]:
        """In train mode by the batch's statistics, which also move the running ones; else by the running ones."""
        mean, var = self._measure(rows, together) if self.training else (self.running_mean, self.running_var)
        return (rows - mean) * (self.weight * (var + 1e-5).rsqrt()) + self.bias

    def _measure(self, rows: Tensor, together: Together) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of all workers' rows, in two passes: a sum of squares would cancel."""
        own = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])
        sums = together.total(own)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        var = together.total((rows - mean).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), 0.1)
            self.num_batches_tracked += 1
        return mean, var


class KeywordBatchNorm(nn.Module):
    """BatchNorm of (rows, keywords, width): each keyword by its own statistics, or all by the same.

    `each` is one BatchNorm over width x keywords, where feature ``e * keywords + k`` is number e of keyword k; the
    official initialisation repeats `scale` and `shift` the other way round (`literal`).
    """

    def __init__(
        self,
        kind: KeywordNorm,
        num_keywords: int,
        scale: Float[Tensor, " width"],
        shift: Float[Tensor, " width"],
        start: NormStart,
    ) -> None:
        super().__init__()
        self.kind: KeywordNorm = kind
        if kind == "same":
            self.bn_layer = SharedBatchNorm(scale, shift)
        elif kind == "each-apart":
            self.bn_layers = nn.ModuleList(SharedBatchNorm(scale, shift) for _ in range(num_keywords))
        elif start == "literal":
            self.bn_layer = SharedBatchNorm(scale.repeat(num_keywords), shift.repeat(num_keywords))
        else:
            self.bn_layer = SharedBatchNorm(
                scale.repeat_interleave(num_keywords), shift.repeat_interleave(num_keywords)
            )

    def forward(
        self, keywords: Float[Tensor, "batch slots width"], together: Together
    ) -> Float[Tensor, "batch slots width"]:
        """The normalised keywords."""
        if self.kind == "each-apart":
            layers = zip(self.bn_layers, keywords.unbind(1), strict=True)
            return torch.stack([layer(rows, together) for layer, rows in layers], dim=1)
        if self.kind == "same":
            normed: Tensor = self.bn_layer(keywords.flatten(0, 1), together)
            return normed.view_as(keywords)
        turned = keywords.transpose(1, 2)
        normed = self.bn_layer(turned.flatten(1), together)
        return normed.view(turned.shape).transpose(1, 2)
