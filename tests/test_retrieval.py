import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechclip.errors import InvalidInput
from speechclip.retrieval import bootstrap_interval, chance_at, rank_answers, retrieve, summarize

GOLDEN = Path(__file__).parent / "data" / "golden" / "retrieval.pt"


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_recall_agrees_with_the_official_function():
    case = torch.load(GOLDEN, weights_only=True)
    score = case["score"].numpy()
    utterance_groups, image_groups = case["speech_image_id"].numpy(), case["image_id"].numpy()
    # Against the unit vectors, a row of scores is its own embedding.
    axes = np.eye(len(image_groups), dtype=np.float32)
    to_image = retrieve(score, axes, utterance_groups, image_groups)
    to_speech = retrieve(axes, score, image_groups, utterance_groups)
    for k in (1, 5, 10):
        ours = [100 * to_image.recall[k], 100 * to_speech.recall[k]]
        assert ours[0] == pytest.approx(case["recall"][0][f"recall@{k}"], abs=1e-4)
        assert ours[1] == pytest.approx(case["recall"][1][f"recall@{k}"], abs=1e-4)
        assert sum(ours) / 2 == pytest.approx(case["recall"][2][f"recall@{k}"], abs=1e-4)


@pytest.mark.parametrize("num_candidates", [13, 37, 41, 101])
@pytest.mark.parametrize("num_queries", [1, 7, 33])
def test_equal_candidates_tie_wherever_they_stand_and_ties_count_against_the_model(num_queries, num_candidates):
    # In fp32 a BLAS gives equal columns unequal scores by their place, in a third of such shapes.
    candidates = np.tile(unit(1, 512), (num_candidates, 1))
    groups = np.arange(num_queries) % num_candidates
    report = retrieve(unit(num_queries, 512, seed=1), candidates, groups, np.arange(num_candidates))
    assert report.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert report.mean_rank == num_candidates


def test_the_ranks_do_not_depend_on_the_size_of_a_block(monkeypatch):
    queries, candidates = unit(50), unit(30, seed=1)
    groups, candidate_groups = np.arange(50) % 10, np.arange(30) % 10
    whole = rank_answers(queries, candidates, groups, candidate_groups)
    monkeypatch.setattr("speechclip.retrieval._BLOCK_SCORES", 90)
    np.testing.assert_array_equal(rank_answers(queries, candidates, groups, candidate_groups), whole)
    assert len(set(whole)) > 3


@given(num_candidates=st.integers(1, 40), data=st.data())
def test_chance_is_the_exact_share_of_all_orders(num_candidates, data):
    answers = data.draw(st.lists(st.integers(1, num_candidates), min_size=1, max_size=5))
    k = data.draw(st.integers(1, 50))
    kept = min(k, num_candidates)
    expected = [1 - math.comb(num_candidates - m, kept) / math.comb(num_candidates, kept) for m in answers]
    assert chance_at(k, np.array(answers), num_candidates) == pytest.approx(np.mean(expected), abs=1e-12)


def test_random_embeddings_reach_what_chance_says():
    groups = np.repeat(np.arange(200), 5)
    report = retrieve(unit(200, 64), unit(1000, 64, seed=1), np.arange(200), groups)
    assert report.chance[10] == pytest.approx(1 - math.comb(995, 10) / math.comb(1000, 10))
    assert report.recall[10] == pytest.approx(report.chance[10], abs=0.05)
    assert report.mean_rank == pytest.approx(report.chance_mean_rank, rel=0.15)
    assert report.median_rank == pytest.approx(report.chance_median_rank, rel=0.25)


def test_chance_figures_of_one_answer_each_are_the_middle():
    report = summarize(np.array([1, 2, 3]), np.array([1, 1, 1]), 625)
    assert (report.chance_mean_rank, report.chance_median_rank) == (313, 313)
    assert report.chance[1] == pytest.approx(1 / 625)
    assert (report.mean_rank, report.median_rank, report.recall[1]) == (2, 2, pytest.approx(1 / 3))


def test_the_interval_holds_the_share_and_narrows_with_more_queries():
    low, high = bootstrap_interval(0.3, 100)
    assert (low, high) == (pytest.approx(0.21, abs=0.02), pytest.approx(0.39, abs=0.02))
    narrow = bootstrap_interval(0.3, 10_000)
    assert low < narrow[0] < 0.3 < narrow[1] < high
    assert bootstrap_interval(0.0, 50) == (0.0, 0.0)


def test_a_query_without_an_answer_is_refused():
    with pytest.raises(InvalidInput, match="2 queries, 1 of them"):
        retrieve(unit(2), unit(3), np.array([0, 9]), np.arange(3))
    with pytest.raises(InvalidInput, match="0 queries"):
        retrieve(unit(0), unit(3), np.empty(0, np.int64), np.arange(3))
