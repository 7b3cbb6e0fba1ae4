"""Continuous integrate-and-fire (CIF): adds up weighted frames to as many keywords as the utterance has.

Source: docs/model.md, "CIF and hybrid heads".

Each frame has a weight between 0 and 1. The weighted frames are added one after the other. Each time the sum of the
weights passes a whole number, one keyword is complete. The frame at that point is divided between two keywords:

    frame       x1    x2    x3    x4    x5          weights add up to 2.5
    weight      0.5   0.5   0.5   0.5   0.5
    keyword 0   0.5 x1 + 0.5 x2
    keyword 1   0.5 x3 + 0.5 x4
    rest        0.5 x5, whose weight is 0.5

In training the rest is no keyword. In evaluation a rest with a weight of 0.5 or more becomes a keyword. It is scaled to
weight one: here keyword 2 = x5.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from speechclip.heads.dropout import drop
from speechclip.heads.together import Together

# The official module uses torch's default for nn.Dropout. It ignores the 0.1 in its config.
DROPOUT = 0.5
# In evaluation, a rest of at least this weight becomes a keyword.
TAIL = 0.5
# Scaled weights add up to the target and this margin, as in the official code. Without it, rounding could keep the sum
# just below the target, and the last keyword would be missing.
MARGIN = 1e-5


@dataclass(frozen=True)
class Fired:
    """The keywords of a batch, each a weighted sum of frames.

    Row b has `counts[b]` keywords. The slots after them are zero in evaluation. In training they hold what the weights
    add up to beyond the last keyword. `length_errors` has for each row the difference between the sum of its weights
    (before they are scaled) and its target number of keywords.
    """

    slots: Float[Tensor, "batch slots width"]
    counts: Int[Tensor, " batch"]
    length_errors: Float[Tensor, " batch"]


class IntegrateAndFire(nn.Module):
    """Learns a weight for each frame, and adds up the weighted frames to keywords.

    `frames_per_keyword` sets the target number of keywords: frames / frames_per_keyword, rounded, at least 1. An
    utterance has at most `max_keywords`.
    """

    def __init__(self, width: int, *, frames_per_keyword: int, max_keywords: int) -> None:
        super().__init__()
        self.frames_per_keyword, self.max_keywords = frames_per_keyword, max_keywords
        # These shapes give the tensors the official names conv.0 and weight_proj.1.
        self.conv = nn.Sequential(nn.Conv1d(width, width, 3, padding=1))
        self.weight_proj = nn.Sequential(nn.Identity(), nn.Linear(width, 1))

    def forward(
        self,
        rows: Float[Tensor, "batch frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None,
        *,
        is_rescaled: bool,
        together: Together,
        first_site: int = 0,
    ) -> Fired:
        """The keywords of each row.

        In training, `is_rescaled` scales the weights so that they add up to the target number. The number of slots is
        the largest number of keywords in a row, in training that of all workers' rows. Dropout uses the sites
        `first_site` and the next one.
        """
        is_frame = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        rows = rows.masked_fill(~is_frame[:, :, None], 0)
        alpha = self._weigh(rows, is_frame, seeds, first_site)
        # The number of keywords depends on whether a sum passes a whole number. In fp64 this does not change with the
        # padding or the order of adding.
        totals = alpha.sum(1)
        targets = (lengths / self.frames_per_keyword).round().clamp(min=1)
        errors = (totals - targets).abs().float()
        if self.training and is_rescaled:
            alpha = alpha * ((targets + MARGIN) / totals)[:, None]
            counts = targets.long().clamp(max=self.max_keywords)
        else:
            counts = totals.detach().floor().long().clamp(1, self.max_keywords)
        if self.training:
            num_slots = together.largest(int(counts.max()))
            return Fired(_integrate(alpha, num_slots) @ rows, counts, errors)
        return Fired(
            *_finish(_integrate(alpha, int(counts.max()) + 1) @ rows, totals, counts, self.max_keywords), errors
        )

    def _weigh(
        self,
        rows: Float[Tensor, "batch frames width"],
        is_frame: Bool[Tensor, "batch frames"],
        seeds: Tensor | None,
        site: int,
    ) -> Tensor:
        """The weights of the frames in fp64, from 0 to 1. Padding has weight 0."""
        inner = self.conv(rows.transpose(1, 2)).transpose(1, 2)
        inner = drop(inner, probability=DROPOUT, seeds=seeds, site=site).relu()
        inner = drop(inner, probability=DROPOUT, seeds=seeds, site=site + 1)
        weights: Tensor = self.weight_proj(inner)[:, :, 0].sigmoid()
        return weights.masked_fill(~is_frame, 0).double()


def _integrate(alpha: Float[Tensor, "batch frames"], num_slots: int) -> Float[Tensor, "batch slots frames"]:
    """For each slot n, the part of each frame's weight that lies between the sums n and n + 1.

    >>> _integrate(torch.tensor([[0.5, 0.75, 0.75]]), 2)
    tensor([[[0.5000, 0.5000, 0.0000],
             [0.0000, 0.2500, 0.7500]]])
    """
    ends = alpha.cumsum(1)
    marks = torch.arange(num_slots, device=alpha.device)[:, None]
    filled = (ends[:, None] - marks).clamp(0, 1)
    return filled.diff(dim=2, prepend=filled.new_zeros(len(alpha), num_slots, 1)).float()


def _finish(
    slots: Float[Tensor, "batch some width"],
    totals: Float[Tensor, " batch"],
    counts: Int[Tensor, " batch"],
    max_keywords: int,
) -> tuple[Float[Tensor, "batch slots width"], Int[Tensor, " batch"]]:
    """The slots and counts of an evaluation.

    If the rest of a row has a weight of at least `TAIL`, it becomes one more keyword and is scaled to weight one.
    A smaller rest is dropped.
    """
    rest = totals.detach() - counts
    has_tail = (rest >= TAIL) & (counts < max_keywords)
    marks = torch.arange(slots.shape[1], device=slots.device)
    is_tail = has_tail[:, None] & (marks == counts[:, None])
    slots = slots * torch.where(is_tail, 1 / rest[:, None], 1.0).float()[:, :, None]
    counts = counts + has_tail
    slots = slots.masked_fill((marks >= counts[:, None])[:, :, None], 0)
    return slots[:, : int(counts.max())], counts
