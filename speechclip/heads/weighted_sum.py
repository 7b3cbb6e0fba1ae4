"""The learned mixture of an encoder's hidden states (docs/model.md, "Weighted sum")."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Normalization = Literal["none", "s3prl", "method1", "method2"]
# Numbers converted to fp32 at a time: on a CPU some cache's worth, on a GPU what keeps it busy (1 GB).
NUMBERS_AT_ONCE = {"cpu": 2**21, "gpu": 2**28}


class WeightedSum(nn.Module):
    """One track of frames: the hidden states weighted by a softmax over learned numbers, zero (uniform) at first.

    Each state is first normalised: `none` as it is, `s3prl` by LayerNorm without parameters, `method1` each frame to
    length one, `method2` by the utterance's mean frame length. `method2` averages over the utterance's own frames
    (the official code also over padding, which makes an embedding depend on its batch).
    """

    def __init__(self, num_layers: int, normalize: Normalization = "none") -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.normalize = normalize

    def forward(
        self, frames: Float[Tensor, "batch layers frames width"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch frames width"]:
        """The track in fp32, whatever the stored type; frames are frozen, so only the weights get a gradient."""
        assert not frames.requires_grad
        # In fp32 also where the head runs under autocast: what is stored may pass fp16's range.
        with torch.autocast(frames.device.type, enabled=False):
            shares = self.weights.softmax(0)
            track: Tensor = _Mixture.apply(shares, frames, lengths, self.normalize)  # type: ignore[no-untyped-call]
        return track


class _Mixture(torch.autograd.Function):
    """The sum in pieces of a few rows: no fp32 or normalised copy of all states is held, and a piece stays in cache.

    On one core this is 4 to 10 times faster than layer by layer over all rows.
    """

    @staticmethod
    def forward(ctx: Any, shares: Tensor, frames: Tensor, lengths: Tensor, normalize: Normalization) -> Tensor:
        ctx.save_for_backward(frames, lengths)
        ctx.normalize = normalize
        track = torch.empty(frames.shape[0], *frames.shape[2:], device=frames.device)
        for rows in _pieces(frames):
            states = _normalized(frames[rows], lengths[rows], normalize)
            track[rows] = (shares @ states.flatten(2)).view_as(track[rows])
        return track

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        frames, lengths = ctx.saved_tensors
        total = torch.zeros(frames.shape[1], device=frames.device)
        for rows in _pieces(frames):
            states = _normalized(frames[rows], lengths[rows], ctx.normalize)
            total += (states.flatten(2) @ gradients[0][rows].flatten(1)[:, :, None]).sum((0, 2))
        return total, None, None, None


def _pieces(frames: Tensor) -> Iterator[slice]:
    most = NUMBERS_AT_ONCE["cpu" if frames.device.type == "cpu" else "gpu"]
    size = max(1, most // max(1, frames[:1].numel()))
    for start in range(0, len(frames), size):
        yield slice(start, start + size)


def _normalized(states: Tensor, lengths: Tensor, normalize: Normalization) -> Tensor:
    """The (rows, layers, frames, width) states in fp32."""
    states = states.float()
    if normalize == "s3prl":
        return F.layer_norm(states, states.shape[-1:], eps=1e-5)
    if normalize == "none":
        return states
    norms: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    if normalize == "method1":
        return states / (norms + 1e-8)
    is_frame = (torch.arange(states.shape[2], device=states.device) < lengths[:, None])[:, None, :, None]
    means = (norms * is_frame).sum(2, keepdim=True) / lengths.clamp(min=1)[:, None, None, None]
    return states / means.clamp(min=1e-8)
