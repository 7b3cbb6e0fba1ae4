import pytest
import torch

from speechclip.errors import InvalidInput
from speechclip.heads.dropout import drop

SEEDS = torch.arange(1000, 1200)


def test_the_asked_share_is_dropped_and_the_rest_is_scaled_up():
    dropped = drop(torch.ones(200, 500), probability=0.1, seeds=SEEDS, site=0)
    assert abs((dropped == 0).float().mean() - 0.1) < 0.005
    assert abs(dropped.mean() - 1) < 0.005
    assert dropped.max() == pytest.approx(1 / 0.9)


def test_rows_places_and_sites_are_dropped_independently():
    masks = torch.stack([drop(torch.ones(200, 8, 60), probability=0.5, seeds=SEEDS, site=site) > 0 for site in (0, 1)])
    centred = masks.float() - 0.5
    by_row = centred[0].flatten(1)
    correlations = (by_row @ by_row.T / (0.25 * by_row.shape[1])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.25
    assert abs(correlations.mean()) < 0.01
    by_place = centred[0].flatten(1).T
    between_places = (by_place @ by_place.T / (0.25 * by_place.shape[1])).fill_diagonal_(0)
    assert between_places.abs().max() < 0.5
    assert abs((centred[0] * centred[1]).mean() / 0.25) < 0.02


def test_nothing_is_dropped_without_seeds_or_probability():
    values = torch.randn(3, 4)
    assert drop(values, probability=0.5, seeds=None, site=0) is values
    assert drop(values, probability=0.0, seeds=SEEDS[:3], site=0) is values


@pytest.mark.parametrize("probability", [1.0, 1.5, -0.1])
def test_a_probability_outside_0_to_1_is_refused(probability: float):
    with pytest.raises(InvalidInput, match=f"dropout is {probability}"):
        drop(torch.ones(2, 2), probability=probability, seeds=SEEDS[:2], site=0)
