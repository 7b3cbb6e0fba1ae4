"""The learned mixture of an encoder's hidden states (SPEECHCLIP_SPEC 2.2)."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Normalization = Literal["none", "s3prl", "method1", "method2"]


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
        shares = self.weights.softmax(0)
        track: Tensor = _Mixture.apply(shares, frames, lengths, self.normalize)  # type: ignore[no-untyped-call]
        return track


class _Mixture(torch.autograd.Function):
    """The sum over layers one by one: neither an fp32 nor a normalised copy of all states is ever held."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, frames: Tensor, lengths: Tensor, normalize: Normalization) -> Tensor:
        ctx.save_for_backward(frames, lengths)
        ctx.normalize = normalize
        track = torch.zeros(frames.shape[0], *frames.shape[2:], device=frames.device)
        for layer, share in enumerate(shares):
            track.addcmul_(_normalized(frames[:, layer], lengths, normalize), share)
        return track

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        frames, lengths = ctx.saved_tensors
        flat = gradients[0].flatten()
        parts = [
            torch.dot(flat, _normalized(frames[:, layer], lengths, ctx.normalize).flatten())
            for layer in range(frames.shape[1])
        ]
        return torch.stack(parts), None, None, None


def _normalized(state: Tensor, lengths: Tensor, normalize: Normalization) -> Tensor:
    state = state.float()
    if normalize == "s3prl":
        return F.layer_norm(state, state.shape[-1:], eps=1e-5)
    if normalize == "none":
        return state
    norms: Tensor = torch.linalg.vector_norm(state, dim=-1)
    if normalize == "method1":
        return state / (norms[:, :, None] + 1e-8)
    is_frame = torch.arange(state.shape[1], device=state.device) < lengths[:, None]
    mean = (norms * is_frame).sum(1) / lengths.clamp(min=1)
    return state / mean.clamp(min=1e-8)[:, None, None]
