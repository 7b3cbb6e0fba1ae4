import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechclip.errors import InvalidInput
from speechclip.evaluation.recall import (
    Trials,
    bootstrap_interval,
    chance_at,
    measure,
    measure_both,
    rank_best_answers,
    report_ranks,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "retrieval.pt"


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_recall_agrees_with_the_official_function():
    case = torch.load(GOLDEN, weights_only=True)
    score = case["score"].numpy()
    utterance_groups, image_groups = case["speech_image_id"].numpy(), case["image_id"].numpy()
    # With unit vectors as the other side, a row of scores is an embedding that gives these scores.
    axes = np.eye(len(image_groups), dtype=np.float32)
    to_image = measure(score, axes, utterance_groups, image_groups)
    to_speech = measure(axes, score, image_groups, utterance_groups)
    for k in (1, 5, 10):
        ours = [100 * to_image.recall[k], 100 * to_speech.recall[k]]
        assert ours[0] == pytest.approx(case["recall"][0][f"recall@{k}"], abs=1e-4)
        assert ours[1] == pytest.approx(case["recall"][1][f"recall@{k}"], abs=1e-4)
        assert sum(ours) / 2 == pytest.approx(case["recall"][2][f"recall@{k}"], abs=1e-4)


@pytest.mark.parametrize("num_candidates", [13, 37, 41, 101])
@pytest.mark.parametrize("num_queries", [1, 7, 33])
def test_equal_candidates_tie_at_every_position_and_ties_count_against_the_model(num_queries, num_candidates):
    # In fp32 a BLAS gives equal columns different scores at different positions, in a third of such shapes.
    candidates = np.tile(unit(1, 512), (num_candidates, 1))
    groups = np.arange(num_queries) % num_candidates
    report = measure(unit(num_queries, 512, seed=1), candidates, groups, np.arange(num_candidates))
    assert report.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert report.mean_rank == num_candidates


def test_embeddings_with_nan_rank_last():
    good, lost = unit(4), np.full((4, 8), np.nan, np.float32)
    groups = np.arange(4)
    assert rank_best_answers(lost, good, groups, groups).tolist() == [4, 4, 4, 4]
    assert rank_best_answers(good, lost, groups, groups).tolist() == [4, 4, 4, 4]


def test_the_ranks_do_not_depend_on_the_size_of_a_block(monkeypatch):
    queries, candidates = unit(50), unit(30, seed=1)
    groups, candidate_groups = np.arange(50) % 10, np.arange(30) % 10
    whole = rank_best_answers(queries, candidates, groups, candidate_groups)
    monkeypatch.setattr("speechclip.evaluation.recall._BLOCK_SCORES", 90)
    np.testing.assert_array_equal(rank_best_answers(queries, candidates, groups, candidate_groups), whole)
    assert len(set(whole)) > 3


@given(num_candidates=st.integers(1, 40), data=st.data())
def test_chance_is_the_exact_share_of_all_orders(num_candidates, data):
    answers = data.draw(st.lists(st.integers(1, num_candidates), min_size=1, max_size=5))
    k = data.draw(st.integers(1, 50))
    kept = min(k, num_candidates)
    expected = [1 - math.comb(num_candidates - m, kept) / math.comb(num_candidates, kept) for m in answers]
    assert chance_at(k, np.array(answers), num_candidates) == pytest.approx(np.mean(expected), abs=1e-12)


def test_random_embeddings_reach_the_level_of_chance():
    groups = np.repeat(np.arange(200), 5)
    report = measure(unit(200, 64), unit(1000, 64, seed=1), np.arange(200), groups)
    assert report.chance[10] == pytest.approx(1 - math.comb(995, 10) / math.comb(1000, 10))
    assert report.recall[10] == pytest.approx(report.chance[10], abs=0.05)
    assert report.mean_rank == pytest.approx(report.chance_mean_rank, rel=0.15)
    assert report.median_rank == pytest.approx(report.chance_median_rank, rel=0.25)


def test_with_one_answer_each_chance_is_the_middle_rank():
    report = report_ranks(np.array([1, 2, 3]), np.array([1, 1, 1]), 625, np.arange(3))
    assert (report.chance_mean_rank, report.chance_median_rank) == (313, 313)
    assert report.chance[1] == pytest.approx(1 / 625)
    assert (report.mean_rank, report.median_rank, report.recall[1]) == (2, 2, pytest.approx(1 / 3))


def trials(hits: np.ndarray, groups: np.ndarray) -> Trials:
    return Trials(hits, np.ones(len(hits), np.int64), groups)


def test_the_interval_contains_the_share_and_is_narrower_with_more_queries():
    low, high = bootstrap_interval(trials(np.arange(100) < 30, np.arange(100)))
    assert (low, high) == (pytest.approx(0.21, abs=0.02), pytest.approx(0.39, abs=0.02))
    narrow = bootstrap_interval(trials(np.arange(10_000) < 3_000, np.arange(10_000)))
    assert low < narrow[0] < 0.3 < narrow[1] < high
    assert bootstrap_interval(trials(np.zeros(50), np.arange(50))) == (0.0, 0.0)


def test_captions_that_are_right_together_widen_the_interval():
    # 100 images with five captions that are all right or all wrong. They tell as much as 100 captions, not 500.
    groups = np.repeat(np.arange(100), 5)
    together = bootstrap_interval(trials(groups < 30, groups))
    assert together == bootstrap_interval(trials(np.arange(100) < 30, np.arange(100)))
    apart = bootstrap_interval(trials(np.arange(500) % 10 < 3, np.arange(500)))
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_five_equal_captions_of_an_image_count_as_one_in_the_interval():
    speech, images = unit(60), unit(60, seed=1)
    once = measure(speech, images, np.arange(60), np.arange(60))
    five = measure(np.repeat(speech, 5, axis=0), images, np.repeat(np.arange(60), 5), np.arange(60))
    assert five.recall == once.recall
    assert 0 < five.recall[10] < 1
    assert five.interval == once.interval


def test_the_interval_is_that_of_groups_drawn_one_by_one():
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(40), np.arange(40) % 4 + 1)) * 7
    hits = generator.random(len(groups)) < 0.2 + 0.5 * (groups % 2)
    own = np.unique(groups)
    others = trials(generator.random(len(own)) < 0.5, own)
    rows = {group: np.flatnonzero(groups == group) for group in own}
    draws, means = [], []
    for _ in range(4_000):
        some = generator.choice(own, len(own))
        share = np.mean(np.concatenate([hits[rows[group]] for group in some]))
        draws.append(share)
        means.append((share + np.mean(others.hits[np.searchsorted(own, some)])) / 2)
    assert bootstrap_interval(trials(hits, groups)) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    both = bootstrap_interval(trials(hits, groups), others)
    assert both == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_both_directions_use_the_same_scores():
    speech, images = unit(40), unit(12, seed=1)
    # Ten images have four utterances each. The last two have none and only compete.
    groups, image_groups = np.arange(40) % 10, np.arange(12)
    both = measure_both(speech, images, groups, image_groups)
    assert both.from_speech == measure(speech, images, groups, image_groups)
    assert both.to_speech == measure(images[:10], speech, image_groups[:10], groups)
    for k in (1, 5, 10):
        assert both.mean_recall[k] == (both.from_speech.recall[k] + both.to_speech.recall[k]) / 2
        assert both.mean_interval[k][0] <= both.mean_recall[k] <= both.mean_interval[k][1]


def test_a_query_without_an_answer_is_an_error():
    with pytest.raises(InvalidInput, match="2 queries, 1 of them"):
        measure(unit(2), unit(3), np.array([0, 9]), np.arange(3))
    with pytest.raises(InvalidInput, match="0 queries"):
        measure(unit(0), unit(3), np.empty(0, np.int64), np.arange(3))
