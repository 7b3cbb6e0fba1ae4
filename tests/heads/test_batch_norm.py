import copy

import pytest
import torch
from support.two_workers import run_two
from torch import Tensor, nn

from speechclip.heads.batch_norm import KeywordBatchNorm, SharedBatchNorm
from speechclip.heads.together import Alone

KEYWORDS, WIDTH = 3, 5


def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Keywords far from zero, where a sum of squares would lose digits, and a scale and a shift."""
    generator = torch.Generator().manual_seed(0)
    keywords = 100 + torch.randn(7, KEYWORDS, WIDTH, generator=generator)
    return keywords, 1 + torch.rand(WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)


def torch_norm(kind: str, keywords: Tensor, norm: KeywordBatchNorm) -> tuple[Tensor, list[nn.BatchNorm1d]]:
    """The keywords normalised by torch's own modules, and these modules."""
    if kind == "each-apart":
        layers = [nn.BatchNorm1d(WIDTH) for _ in range(KEYWORDS)]
        own = list(norm.bn_layers)
    else:
        layers = [nn.BatchNorm1d(WIDTH if kind == "same" else WIDTH * KEYWORDS)]
        own = [norm.bn_layer]
    for layer, mine in zip(layers, own, strict=True):
        layer.load_state_dict(mine.state_dict())
    if kind == "each-apart":
        return torch.stack([layer(keywords[:, k]) for k, layer in enumerate(layers)], 1), layers
    turned = keywords.transpose(1, 2)
    if kind == "same":
        return layers[0](turned).transpose(1, 2), layers
    return layers[0](turned.reshape(len(keywords), -1)).view(turned.shape).transpose(1, 2), layers


@pytest.mark.parametrize("kind", ["each", "each-apart", "same"])
def test_each_kind_is_torchs_batch_norm_over_the_axes_it_names(kind):
    keywords, scale, shift = parts()
    norm = KeywordBatchNorm(kind, KEYWORDS, scale, shift, "literal")
    weights = torch.randn(keywords.shape, generator=torch.Generator().manual_seed(1))
    mine, other = (keywords.clone().requires_grad_() for _ in range(2))
    expected, layers = torch_norm(kind, other, norm)
    found = norm(mine, Alone())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=0)
    own = list(norm.bn_layers) if kind == "each-apart" else [norm.bn_layer]
    for layer, module in zip(layers, own, strict=True):
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(module.weight.grad, layer.weight.grad, atol=1e-4, rtol=1e-4)
        layer.eval()
    in_evaluation = norm.eval()(keywords, Alone())
    replay = KeywordBatchNorm(kind, KEYWORDS, scale, shift, "literal").eval()
    replay.load_state_dict(norm.state_dict())
    assert torch.equal(replay(keywords, Alone()), in_evaluation)


def test_evaluation_uses_running_statistics_and_leaves_them():
    layer = SharedBatchNorm(torch.ones(2), torch.zeros(2)).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([4.0, 9.0]))
    found = layer(torch.tensor([[3.0, 8.0]]), Alone())
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0]]), atol=1e-5, rtol=0)
    assert layer.num_batches_tracked == 0
    assert layer.running_mean.tolist() == [1.0, 2.0]


def test_the_literal_start_repeats_keyword_by_keyword_and_the_corrected_feature_by_feature():
    scale, shift = torch.arange(1.0, WIDTH + 1), -torch.arange(1.0, WIDTH + 1)
    literal = KeywordBatchNorm("each", KEYWORDS, scale, shift, "literal").bn_layer
    corrected = KeywordBatchNorm("each", KEYWORDS, scale, shift, "corrected")
    assert literal.weight.tolist() == [1, 2, 3, 4, 5] * KEYWORDS
    assert literal.bias.tolist() == [-1, -2, -3, -4, -5] * KEYWORDS
    # Feature e of keyword k is number e * keywords + k: with the corrected start each has its own scale.
    keywords = torch.ones(1, KEYWORDS, WIDTH)
    found = corrected.eval()(keywords, Alone())[0]
    torch.testing.assert_close(found, (scale + shift).expand(KEYWORDS, -1), atol=1e-4, rtol=0)
    assert corrected.bn_layer.weight.tolist() == [value for value in scale.tolist() for _ in range(KEYWORDS)]


@pytest.mark.parametrize("kind", ["each", "each-apart", "same"])
def test_two_workers_have_the_statistics_and_gradients_of_one(kind):
    keywords, scale, shift = parts()
    keywords = keywords - 100
    weights = torch.randn(keywords.shape, generator=torch.Generator().manual_seed(2))
    norm = KeywordBatchNorm(kind, KEYWORDS, scale, shift, "literal")
    shares = [slice(0, 2), slice(2, 7)]
    norms = [copy.deepcopy(norm) for _ in shares]
    whole = keywords.clone().requires_grad_()
    expected = norm(whole, Alone())
    (expected * weights).sum().backward()

    def work(worker):
        own = keywords[shares[worker.rank]].clone().requires_grad_()
        found = norms[worker.rank](own, worker)
        (found * weights[shares[worker.rank]]).sum().backward()
        return found, own.grad

    found = run_two(work)
    torch.testing.assert_close(torch.cat([part for part, _ in found]), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), whole.grad, atol=1e-6, rtol=0)
    for name, value in norm.state_dict().items():
        for each in norms:
            torch.testing.assert_close(each.state_dict()[name], value, atol=1e-6, rtol=0)
    for name, parameter in norm.named_parameters():
        summed = sum(dict(each.named_parameters())[name].grad for each in norms)
        torch.testing.assert_close(summed, parameter.grad, atol=1e-6, rtol=1e-6)
