import pytest
import torch
from torch.nn import functional as F

from speechclip.heads import WeightedSum

LENGTHS = torch.tensor([7, 4])


def plain(frames: torch.Tensor, weights: torch.Tensor, normalize: str) -> torch.Tensor:
    """The weighted sum by its definition, with torch's own gradients."""
    if normalize == "s3prl":
        frames = F.layer_norm(frames, frames.shape[-1:])
    elif normalize == "method1":
        frames = frames / (frames.norm(dim=-1, keepdim=True) + 1e-8)
    elif normalize == "method2":
        means = [row[:, :length].norm(dim=-1).mean(-1) for row, length in zip(frames, LENGTHS, strict=True)]
        frames = frames / torch.stack(means)[:, :, None, None]
    return torch.einsum("l,bltd->btd", weights.softmax(0), frames)


@pytest.mark.parametrize("normalize", ["none", "s3prl", "method1", "method2"])
def test_the_sum_and_its_gradient_are_those_of_the_definition(normalize):
    torch.manual_seed(0)
    frames = torch.randn(2, 5, 7, 8) + 0.5
    weighted_sum = WeightedSum(5, normalize)
    weighted_sum.weights.data = torch.randn(5)
    weights = weighted_sum.weights.detach().clone().requires_grad_()
    expected = plain(frames, weights, normalize)
    found = weighted_sum(frames, LENGTHS)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    torch.testing.assert_close(weighted_sum.weights.grad, weights.grad, atol=1e-4, rtol=1e-4)


def test_the_weights_are_uniform_at_first():
    frames = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(WeightedSum(4)(frames, LENGTHS), frames.mean(1))


def test_autocast_leaves_the_mixture_in_fp32():
    layer = WeightedSum(3)
    frames, lengths = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 4])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(frames, lengths)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, layer(frames, lengths), atol=0, rtol=0)
