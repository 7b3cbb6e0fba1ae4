import math

import pytest
import torch
from torch.nn import functional as F

from speechclip.training.losses import ContrastiveLoss


def pairs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(F.normalize(torch.randn(rows, 8, generator=generator), dim=-1) for _ in range(2))  # type: ignore[return-value]


def test_rows_of_one_group_are_neither_positives_nor_negatives():
    speech, image = pairs(5)
    groups = torch.tensor([1, 2, 1, 3, 2])
    z = (speech @ image.T / 0.07).double()
    terms = []
    for i in range(5):
        others = [j for j in range(5) if j == i or groups[j] != groups[i]]
        terms += [torch.logsumexp(z[i, others], 0) - z[i, i], torch.logsumexp(z[others, i], 0) - z[i, i]]
    expected = torch.stack(terms).sum() / 10
    assert ContrastiveLoss()(speech, image, groups).item() == pytest.approx(expected.item(), abs=1e-5)
    assert ContrastiveLoss()(speech, image, torch.arange(5)).item() > expected.item()


def test_the_loss_is_finite_at_scales_above_88():
    speech, image = pairs(6)
    speech.requires_grad_()
    loss = ContrastiveLoss(0.001)(speech, image, torch.arange(6))
    loss.backward()
    assert loss.isfinite()
    assert speech.grad.isfinite().all()


def test_a_batch_may_have_more_than_256_rows():
    speech, image = pairs(700)
    assert ContrastiveLoss()(speech, image, torch.arange(700)).isfinite()


def test_a_learnable_temperature_starts_at_the_same_loss_and_gets_a_gradient():
    speech, image = pairs(4)
    fixed, learnable = ContrastiveLoss(0.07), ContrastiveLoss(0.07, is_learnable=True)
    assert not list(fixed.parameters())
    loss = learnable(speech, image, torch.arange(4))
    torch.testing.assert_close(loss, fixed(speech, image, torch.arange(4)))
    loss.backward()
    assert learnable.temperature.item() == pytest.approx(math.log(1 / 0.07))
    assert learnable.temperature.grad.abs() > 0


def test_without_the_mask_every_other_row_is_a_negative():
    speech, image = pairs(5)
    groups = torch.tensor([1, 2, 1, 3, 2])
    unmasked = ContrastiveLoss(is_same_group_masked=False)(speech, image, groups)
    torch.testing.assert_close(unmasked, ContrastiveLoss()(speech, image, torch.arange(5)), atol=0, rtol=0)
    assert unmasked > ContrastiveLoss()(speech, image, groups)
