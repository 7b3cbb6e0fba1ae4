"""The contrastive loss between speech and images (or texts).

Source: docs/model.md, "Loss".
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class ContrastiveLoss(nn.Module):
    """The mean of the cross entropies of both directions over a global batch.

    The negatives of a row are the rows of other groups. The other rows of its own group are masked: they are neither
    positives nor negatives. With `is_same_group_masked=False` they are negatives too.

    The cosine is multiplied by ``1 / temperature``. If it is learnable, the parameter is ``log(1 / temperature)``. Its
    name is `temperature`, as in the official checkpoints, and nothing limits it.
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
        """The loss, where row i of `speech` belongs to row i of `image`. All rows must have length one."""
        scale = math.exp(self._fixed) if self.temperature is None else self.temperature.exp()
        logits = scale * speech.float() @ image.float().T
        targets = torch.arange(len(logits), device=logits.device)
        if self._is_same_group_masked:
            is_masked = (groups[:, None] == groups) & (targets[:, None] != targets)
            # Masked before the logsumexp. The official code sums exponentials, which overflows at scales above 88.
            logits = logits.masked_fill(is_masked, float("-inf"))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
