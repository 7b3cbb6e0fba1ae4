"""The contrastive loss with same-image captions masked (docs/model.md, "Loss")."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class ContrastiveLoss(nn.Module):
    """The mean of both directions' cross entropy over a global batch of any size.

    Negatives of a row are the rows of other groups; rows of its own group are neither positives nor negatives, unless
    `is_same_group_masked` is off (officially `exactly`): then all other rows are negatives. The cosine is multiplied by
    ``1 / temperature``; a learnable one is kept as its logarithm, unclamped, under the official name `temperature`.
    """

    def __init__(
        self, temperature: float = 0.07, *, is_learnable: bool = False, is_same_group_masked: bool = True
    ) -> None:
        super().__init__()
        self._is_same_group_masked = is_same_group_masked
        self._fixed = math.log(1 / temperature)
        self.temperature = nn.Parameter(torch.tensor(self._fixed)) if is_learnable else None

    def forward(
        self,
        speech: Float[Tensor, "batch embedding"],
        image: Float[Tensor, "batch embedding"],
        groups: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of aligned rows, both sides of length one."""
        scale = math.exp(self._fixed) if self.temperature is None else self.temperature.exp()
        logits = scale * speech.float() @ image.float().T
        targets = torch.arange(len(logits), device=logits.device)
        if self._is_same_group_masked:
            is_masked = (groups[:, None] == groups) & (targets[:, None] != targets)
            # Masked before the logsumexp: the official sum of exponentials overflows once the scale passes 88.
            logits = logits.masked_fill(is_masked, float("-inf"))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
