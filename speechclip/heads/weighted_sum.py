"""The learned weighted sum of an encoder's hidden states (docs/model.md, "Weighted sum").

    track_t = sum over layers i of softmax(w)_i * g(h_i,t)

h_i,t is the hidden state of layer i at frame t, w are the learned numbers, g is the normalisation.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Normalization = Literal["none", "s3prl", "method1", "method2"]
# How many numbers are converted to fp32 at once: on a CPU about as many as fit in a cache, on a GPU enough to keep it
# busy (1 GB).
NUMBERS_AT_ONCE = {"cpu": 2**21, "gpu": 2**28}


class WeightedSum(nn.Module):
    """Mixes the hidden states of all layers to one track of frames.

    The learned numbers are zero at first, so all layers have the same weight. `normalize` says what is done with each
    hidden state before:

    - `none`: nothing.
    - `s3prl`: LayerNorm over the width, without learned numbers.
    - `method1`: each frame is divided by its L2 norm.
    - `method2`: all frames are divided by the mean L2 norm of the utterance's frames. The official mean includes
      padded frames, so there the result depends on the batch. Here it does not.
    """

    def __init__(self, num_layers: int, normalize: Normalization = "none") -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.normalize = normalize

    def forward(
        self, frames: Float[Tensor, "batch layers frames width"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch frames width"]:
        """The track in fp32, for frames of any type. Only the learned numbers get a gradient, not the frames."""
        assert not frames.requires_grad
        # In fp32 even if the head runs under autocast, because stored numbers may be outside the range of fp16.
        with torch.autocast(frames.device.type, enabled=False):
            shares = self.weights.softmax(0)
            track: Tensor = _Mixture.apply(shares, frames, lengths, self.normalize)  # type: ignore[no-untyped-call]
        return track


class _Mixture(torch.autograd.Function):
    """The weighted sum, computed for a few rows at a time.

    So no fp32 or normalised copy of all states is in memory, and the numbers of one step stay in the cache. On one core
    this is 4 to 10 times faster than adding up one layer of all rows after the other.
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
    """The rows of each step: at most `NUMBERS_AT_ONCE` numbers, but at least one row."""
    most = NUMBERS_AT_ONCE["cpu" if frames.device.type == "cpu" else "gpu"]
    size = max(1, most // max(1, frames[:1].numel()))
    for start in range(0, len(frames), size):
        yield slice(start, start + size)


def _normalized(states: Tensor, lengths: Tensor, normalize: Normalization) -> Tensor:
    """The states, (rows, layers, frames, width), in fp32 and normalised."""
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
