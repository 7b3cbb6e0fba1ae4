"""Continuous integrate-and-fire: frames summed to keywords, as many as their weights say.

Source: docs/model.md, "CIF and hybrid heads".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from speechclip.heads.dropout import drop
from speechclip.heads.together import Together

# torch's default for nn.Dropout, which the official module takes; its config's 0.1 is not used.
DROPOUT = 0.5
# A tail of at least this weight becomes a keyword of its own, outside training.
TAIL = 0.5
# Scaled weights add up to this much more than the target, officially so that rounding can't keep the last from firing.
MARGIN = 1e-5


@dataclass(frozen=True)
class Fired:
    """Keywords as sums of frames. Slots from `counts` on are zero, but in training for what had not fired by the end.

    `length_errors` is the distance of the weights' sum to the target number.
    """

    slots: Float[Tensor, "batch slots width"]
    counts: Int[Tensor, " batch"]
    length_errors: Float[Tensor, " batch"]


class IntegrateAndFire(nn.Module):
    """A weight between 0 and 1 for each frame; whenever their sum passes a whole number, a keyword is complete."""

    def __init__(self, width: int, *, frames_per_keyword: int, max_keywords: int) -> None:
        super().__init__()
        self.frames_per_keyword, self.max_keywords = frames_per_keyword, max_keywords
        # The official names: conv.0 and weight_proj.1.
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
        """Frames to keywords; with `is_rescaled` the weights are scaled in training to give just the target number.

        In training there are as many slots as the fullest row of all workers needs. Dropout takes two sites.
        """
        is_frame = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        rows = rows.masked_fill(~is_frame[:, :, None], 0)
        alpha = self._weigh(rows, is_frame, seeds, first_site)
        # Whole numbers decide, so sums are in fp64: they depend neither on padding nor on the order of adding.
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
        """The weights in fp64, zero for padding."""
        inner = self.conv(rows.transpose(1, 2)).transpose(1, 2)
        inner = drop(inner, probability=DROPOUT, seeds=seeds, site=site).relu()
        inner = drop(inner, probability=DROPOUT, seeds=seeds, site=site + 1)
        weights: Tensor = self.weight_proj(inner)[:, :, 0].sigmoid()
        return weights.masked_fill(~is_frame, 0).double()


def _integrate(alpha: Float[Tensor, "batch frames"], num_slots: int) -> Float[Tensor, "batch slots frames"]:
    """How much of each frame's weight falls between the whole numbers n and n + 1, for each slot n."""
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
    """Outside training: a tail of enough weight becomes one more keyword, scaled up to weight one; less is lost."""
    rest = totals.detach() - counts
    has_tail = (rest >= TAIL) & (counts < max_keywords)
    marks = torch.arange(slots.shape[1], device=slots.device)
    is_tail = has_tail[:, None] & (marks == counts[:, None])
    slots = slots * torch.where(is_tail, 1 / rest[:, None], 1.0).float()[:, :, None]
    counts = counts + has_tail
    slots = slots.masked_fill((marks >= counts[:, None])[:, :, None], 0)
    return slots[:, : int(counts.max())], counts
