import math

import pytest
import torch
from torch import Tensor

from speechclip.heads.cif import IntegrateAndFire
from speechclip.heads.together import Alone

WIDTH = 6


class Fuller(Alone):
    """Workers of which another one has a row with `slots` keywords."""

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def largest(self, value: int) -> int:
        return max(value, self.slots)


def made(*, loud: float = 0.0, **options: int) -> IntegrateAndFire:
    torch.manual_seed(0)
    cif = IntegrateAndFire(WIDTH, **({"frames_per_keyword": 4, "max_keywords": 75} | options))
    with torch.no_grad():
        for parameter in cif.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        cif.weight_proj[1].bias += loud
    return cif


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([23, 1, 12, 30, 7, 2])
    return torch.randn(6, 30, WIDTH, generator=torch.Generator().manual_seed(3)), lengths


def plainly_weighed(cif: IntegrateAndFire, frames: Tensor) -> Tensor:
    inner = cif.conv[0](frames.T[None])[0].T.relu()
    return cif.weight_proj[1](inner)[:, 0].sigmoid().double()


def plainly(
    cif: IntegrateAndFire, frames: Tensor, *, is_training: bool, is_rescaled: bool
) -> tuple[list[Tensor], Tensor]:
    """The keywords of one utterance, added up frame by frame, and the difference of the weights' sum to the target."""
    alpha = plainly_weighed(cif, frames)
    target = max(1, round(len(frames) / cif.frames_per_keyword))
    error = (alpha.sum() - target).abs()
    if is_training and is_rescaled:
        alpha = alpha * (target + 1e-5) / alpha.sum()
    fired, level, kept = [], torch.zeros((), dtype=torch.float64), torch.zeros(WIDTH)
    for weight, frame in zip(alpha, frames, strict=True):
        left = weight
        while level + left >= 1:
            fired.append(kept + (1 - level).float() * frame)
            left = left - (1 - level)
            level, kept = torch.zeros_like(level), torch.zeros(WIDTH)
        level, kept = level + left, kept + left.float() * frame
    if not fired:
        fired.append(kept)
    elif not is_training and level >= 0.5:
        fired.append(kept / level.detach().float())
    return fired[: cif.max_keywords], error


@pytest.mark.parametrize(("is_training", "is_rescaled"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("loud", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("frames_per_keyword", [1, 4, 20])
def test_all_frames_at_once_give_what_a_plain_loop_gives(is_training, is_rescaled, loud, frames_per_keyword):
    cif = made(loud=loud, frames_per_keyword=frames_per_keyword).train(is_training)
    values, lengths = rows()
    weights = torch.randn(6, 40, WIDTH)
    fired = cif(values.requires_grad_(), lengths, None, is_rescaled=is_rescaled, together=Alone())
    total = torch.zeros(())
    for row, length in enumerate(lengths):
        expected, error = plainly(cif, values[row, :length], is_training=is_training, is_rescaled=is_rescaled)
        count = int(fired.counts[row])
        assert count == len(expected)
        torch.testing.assert_close(fired.slots[row, :count], torch.stack(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(fired.length_errors[row], error.float(), atol=1e-5, rtol=0)
        total = total + (torch.stack(expected) * weights[row, :count]).sum() + error.float()
    is_fired = torch.arange(fired.slots.shape[1]) < fired.counts[:, None]
    found = (fired.slots * weights[:, : fired.slots.shape[1]])[is_fired].sum() + fired.length_errors.sum()
    named = [values, *cif.parameters()]
    for mine, other in zip(torch.autograd.grad(found, named), torch.autograd.grad(total, named), strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm()


def test_in_the_first_steps_the_target_is_hit_exactly_whatever_the_weights():
    values, lengths = rows()
    for loud in (-6.0, 0.0, 6.0):
        fired = made(loud=loud).train()(values, lengths, None, is_rescaled=True, together=Alone())
        assert fired.counts.tolist() == [6, 1, 3, 8, 2, 1]
        # 7 frames are 1.75 keywords. 2 frames are 0.5 keywords, which rounds to 0, but one keyword is the least.


def test_no_more_than_the_most_keywords_and_no_fewer_than_one():
    values, lengths = rows()
    for is_training in (True, False):
        loud = made(loud=9.0, max_keywords=5).train(is_training)
        assert loud(values, lengths, None, is_rescaled=False, together=Alone()).counts.max() == 5
        rescaled = made(max_keywords=5).train(is_training)
        assert rescaled(values, lengths, None, is_rescaled=True, together=Alone()).counts.max() == 5
        quiet = made(loud=-9.0).train(is_training)
        fired = quiet(values, lengths, None, is_rescaled=False, together=Alone())
        assert fired.counts.tolist() == [1] * 6
        assert fired.slots.abs().sum(-1).gt(0).all()


def test_a_tail_of_half_a_weight_fires_outside_training_alone():
    # Weights of 0.5 each: 5 frames are 2.5 keywords, 6 are 3.
    cif = made()
    with torch.no_grad():
        cif.weight_proj[1].weight.zero_()
        cif.weight_proj[1].bias.zero_()
    values = torch.arange(1.0, 7).view(1, 6, 1).expand(2, 6, WIDTH)
    lengths = torch.tensor([5, 6])
    evaluated = cif.eval()(values, lengths, None, is_rescaled=False, together=Alone())
    assert evaluated.counts.tolist() == [3, 3]
    assert evaluated.slots[:, :, 0].tolist() == [[1.5, 3.5, 5.0], [1.5, 3.5, 5.5]]
    trained = cif.train()(values, lengths, None, is_rescaled=False, together=Alone())
    assert trained.counts.tolist() == [2, 3]
    # In training the rest stays in its slot. It has an effect only on the BatchNorm, as in the official code.
    assert trained.slots[:, :, 0].tolist() == [[1.5, 3.5, 2.5], [1.5, 3.5, 5.5]]


def test_a_tail_of_less_than_half_a_weight_is_lost_outside_training():
    # Weights of 0.3 each: 4 frames are 1.2 keywords, 11 are 3.3.
    cif = made().eval()
    with torch.no_grad():
        cif.weight_proj[1].weight.zero_()
        cif.weight_proj[1].bias.fill_(math.log(0.3 / 0.7))
    fired = cif(torch.ones(2, 11, WIDTH), torch.tensor([4, 11]), None, is_rescaled=False, together=Alone())
    assert fired.counts.tolist() == [1, 3]
    torch.testing.assert_close(fired.slots[:, :, 0], torch.tensor([[1.0, 0, 0], [1, 1, 1]]))


def test_the_fullest_row_of_all_workers_sets_the_number_of_slots_in_training():
    values, lengths = rows()
    cif = made().train()
    alone = cif(values, lengths, None, is_rescaled=True, together=Alone()).slots
    more = cif(values, lengths, None, is_rescaled=True, together=Fuller(11)).slots
    assert (alone.shape[1], more.shape[1]) == (8, 11)
    # On some CPUs the last bit depends on the number of slots.
    torch.testing.assert_close(more[:, :8], alone, atol=1e-7, rtol=0)
    # Scaled weights add up to a little more than the target.
    assert more[:, 8:].abs().max() < 1e-4
    assert cif.eval()(values, lengths, None, is_rescaled=True, together=Fuller(99)).slots.shape[1] < 30


def test_padding_does_not_matter():
    values, lengths = rows()
    for is_training in (True, False):
        cif = made().train(is_training)
        seeds = torch.arange(6) if is_training else None
        together = cif(values, lengths, seeds, is_rescaled=False, together=Alone())
        for row, length in enumerate(lengths):
            part = slice(row, row + 1)
            own_seeds = None if seeds is None else seeds[part]
            alone = cif(values[part, :length], lengths[part], own_seeds, is_rescaled=False, together=Alone())
            count = int(alone.counts)
            assert count == together.counts[row]
            torch.testing.assert_close(alone.slots[0, :count], together.slots[row, :count], atol=1e-6, rtol=0)


def test_dropout_of_a_half_changes_the_weights_by_seed():
    values, lengths = rows()
    cif = made().train()

    def errors(seeds: Tensor | None) -> Tensor:
        return cif(values, lengths, seeds, is_rescaled=True, together=Alone()).length_errors

    seeds = torch.arange(6)
    assert torch.equal(errors(seeds), errors(seeds))
    assert not torch.equal(errors(seeds), errors(seeds + 1))
    assert not torch.equal(errors(seeds), errors(None))
