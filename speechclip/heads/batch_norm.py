"""The BatchNorm that brings keywords to the scale of CLIP's token embeddings (docs/model.md, "Cascaded head", step 4).

The mean and variance are those of the rows of all workers, if the head was given the workers (`Together`).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speechclip.heads.together import Together

KeywordNorm = Literal["each", "each-apart", "same"]
NormStart = Literal["literal", "corrected"]


class SharedBatchNorm(nn.Module):
    """As `torch.nn.BatchNorm1d`, but the statistics are those of the rows of all workers.

        y = weight * (x - mean) / sqrt(var + 1e-5) + bias       for each feature

    The names of its parameters and buffers are torch's.
    """

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
        """The normalised rows.

        In train mode the mean and variance are those of the batch, and the running ones move a tenth of the way to
        them. In eval mode the running ones are used.
        """
        mean, var = self._measure(rows, together) if self.training else (self.running_mean, self.running_var)
        return (rows - mean) * (self.weight * (var + 1e-5).rsqrt()) + self.bias

    def _measure(self, rows: Tensor, together: Together) -> tuple[Tensor, Tensor]:
        """The mean and the biased variance of the rows of all workers. Moves the running statistics.

        The variance needs the mean first. The difference of two sums of squares would lose its digits.
        """
        own = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])
        sums = together.total(own)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        var = together.total((rows - mean).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            # torch keeps the unbiased variance as the running one.
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), 0.1)
            self.num_batches_tracked += 1
        return mean, var


class KeywordBatchNorm(nn.Module):
    """BatchNorm of keywords, an array (rows, keywords, width).

    `kind` says which keywords share their statistics:

    - `each`: every keyword has its own, in one BatchNorm with width x keywords features. Number e of keyword k is
      feature ``e * keywords + k``.
    - `each-apart`: the same, in one BatchNorm for each keyword.
    - `same`: all keywords share them, in one BatchNorm with width features.

    `scale` and `shift` are the first weights and biases, one for each of the width numbers. For `each` with two
    keywords and scale = [a, b, c], `start` gives these first weights:

        corrected   [a, a, b, b, c, c]      each feature has the scale of its number
        literal     [a, b, c, a, b, c]      as the official code, which mixes the numbers up
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
