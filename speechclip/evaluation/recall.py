"""Recall in both directions, with the level of chance and a confidence interval.

Source: docs/model.md, "Evaluation protocol".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from speechclip.errors import InvalidInput
from speechclip.records import Record

CUTOFFS = (1, 5, 10)
# How many scores of queries against candidates, and how many bootstrap draws, are in memory at once.
_BLOCK_SCORES = 16_000_000
_DRAWS_AT_ONCE = 1_000


class RetrievalReport(Record, frozen=True):
    """Retrieval in one direction. Recalls are shares from 0 to 1, by cutoff.

    `chance` and `chance_…` are the expected figures if the candidates were in random order. `interval` is the 95 %
    bootstrap interval of each recall. It draws whole groups, because the captions of one image are often right or
    wrong together.
    """

    num_queries: int
    num_candidates: int
    recall: dict[int, float]
    chance: dict[int, float]
    interval: dict[int, tuple[float, float]]
    mean_rank: float
    chance_mean_rank: float
    median_rank: float
    chance_median_rank: float


class BothDirections(Record, frozen=True):
    """Retrieval between speech and images, or between speech and texts, in both directions.

    `mean_recall` is the mean of the two recalls. For `mean_interval` a drawn group counts with its queries of both
    directions.
    """

    from_speech: RetrievalReport
    to_speech: RetrievalReport
    mean_recall: dict[int, float]
    mean_interval: dict[int, tuple[float, float]]


class Trials(NamedTuple):
    """Rows for a bootstrap: how many hits each row has, in how many tries, and the group that it belongs to."""

    hits: Shaped[np.ndarray, " rows"]
    tries: Int[np.ndarray, " rows"]
    groups: Int[np.ndarray, " rows"]


def measure_both(
    speech: Float[np.ndarray, "utterances width"],
    others: Float[np.ndarray, "others width"],
    speech_groups: Int[np.ndarray, " utterances"],
    other_groups: Int[np.ndarray, " others"],
) -> BothDirections:
    """The figures of retrieval between utterances and images (or texts), from embeddings of length one.

    Every utterance is a query for the others of its group. Every other is a query for the utterances of its group, if
    there are any; without any it only competes.
    """
    is_spoken = np.isin(other_groups, speech_groups)
    asking = other_groups[is_spoken]
    from_ranks, from_speech = _rank_and_report(speech, others, speech_groups, other_groups)
    to_ranks, to_speech = _rank_and_report(others[is_spoken], speech, asking, speech_groups)
    return BothDirections(
        from_speech=from_speech,
        to_speech=to_speech,
        mean_recall={k: (from_speech.recall[k] + to_speech.recall[k]) / 2 for k in CUTOFFS},
        mean_interval={
            k: bootstrap_interval(_trials(k, from_ranks, speech_groups), _trials(k, to_ranks, asking)) for k in CUTOFFS
        },
    )


def measure(
    queries: Float[np.ndarray, "queries width"],
    candidates: Float[np.ndarray, "candidates width"],
    query_groups: Int[np.ndarray, " queries"],
    candidate_groups: Int[np.ndarray, " candidates"],
) -> RetrievalReport:
    """The figures of one direction, from embeddings of length one. Any candidate of a query's group is a right answer.

    `InvalidInput` if there are no queries, or if a query has no right answer among the candidates.
    """
    return _rank_and_report(queries, candidates, query_groups, candidate_groups)[1]


def _rank_and_report(
    queries: np.ndarray, candidates: np.ndarray, query_groups: np.ndarray, candidate_groups: np.ndarray
) -> tuple[Int[np.ndarray, " queries"], RetrievalReport]:
    """The rank of each query's best answer, and the report of these ranks."""
    groups, counts = np.unique(candidate_groups, return_counts=True)
    is_answered = np.isin(query_groups, groups)
    if not len(query_groups) or not is_answered.all():
        raise InvalidInput(
            f"{len(query_groups)} queries, {int((~is_answered).sum())} of them without an answer among "
            f"{len(candidates)} candidates",
            "leave those out",
        )
    ranks = rank_best_answers(queries, candidates, query_groups, candidate_groups)
    return ranks, report_ranks(ranks, counts[np.searchsorted(groups, query_groups)], len(candidates), query_groups)


def rank_best_answers(
    queries: Float[np.ndarray, "queries width"],
    candidates: Float[np.ndarray, "candidates width"],
    query_groups: Int[np.ndarray, " queries"],
    candidate_groups: Int[np.ndarray, " candidates"],
) -> Int[np.ndarray, " queries"]:
    """The rank of each query's best right answer, from 1.

    Ties count against the model: a wrong candidate with an equal score, or with NaN, ranks before the answer.
    """
    ranks = np.empty(len(queries), np.int64)
    wide = candidates.astype(np.float64).T
    block = max(1, _BLOCK_SCORES // max(1, len(candidates)))
    for start in range(0, len(queries), block):
        # The sums are in fp64 and rounded to fp32. So equal vectors have equal scores at every place of the matrix.
        scores = (queries[start : start + block].astype(np.float64) @ wide).astype(np.float32)
        is_answer = query_groups[start : start + block, None] == candidate_groups
        best = np.where(is_answer, scores, -np.inf).max(axis=1, keepdims=True)
        # Not `scores >= best`: that is false for NaN, and a head that has diverged would rank all answers first.
        ranks[start : start + block] = 1 + (~(scores < best) & ~is_answer).sum(axis=1)
    return ranks


def recall_at(k: int, ranks: Int[np.ndarray, " queries"]) -> float:
    """The share of queries, from 0 to 1, whose answer is among the first `k`."""
    return float(np.mean(ranks <= k))


def chance_at(k: int, num_answers: Int[np.ndarray, " queries"], num_candidates: int) -> float:
    """The exact expected recall of a random order: the mean of ``1 - C(N - m, k) / C(N, k)`` over the queries.

    N is `num_candidates`; m, the number of right answers, comes from `num_answers` for each query.
    """
    answers, counts = np.unique(num_answers, return_counts=True)
    hits = [1 - _miss(k, int(m), num_candidates) for m in answers]
    return float(np.average(hits, weights=counts))


def report_ranks(
    ranks: Int[np.ndarray, " queries"],
    num_answers: Int[np.ndarray, " queries"],
    num_candidates: int,
    groups: Int[np.ndarray, " queries"],
    cutoffs: Sequence[int] = CUTOFFS,
) -> RetrievalReport:
    """The report of these ranks. `num_answers` is the number of right answers of each query, `groups` its group."""
    return RetrievalReport(
        num_queries=len(ranks),
        num_candidates=num_candidates,
        recall={k: recall_at(k, ranks) for k in cutoffs},
        chance={k: chance_at(k, num_answers, num_candidates) for k in cutoffs},
        interval={k: bootstrap_interval(_trials(k, ranks, groups)) for k in cutoffs},
        mean_rank=float(ranks.mean()),
        chance_mean_rank=float(np.mean((num_candidates + 1) / (num_answers + 1))),
        median_rank=float(np.median(ranks)),
        chance_median_rank=_chance_median(num_answers, num_candidates),
    )


def bootstrap_interval(*sides: Trials, num_draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the share of hits among tries. With several sides: of the mean of their shares.

    Each draw takes as many groups as there are, with replacement. All sides must have the same groups. The random
    seed is fixed, so the same input gives the same interval.
    """
    groups = np.unique(np.concatenate([side.groups for side in sides]))
    tallies = np.zeros((len(groups), len(sides), 2))
    for number, side in enumerate(sides):
        places = np.searchsorted(groups, side.groups)
        tallies[:, number, 0] = np.bincount(places, side.hits, len(groups))
        tallies[:, number, 1] = np.bincount(places, side.tries, len(groups))
    # Groups with the same hits and tries are interchangeable. It is enough to draw how many there are of each kind, and
    # there are a few kinds where there are thousands of groups.
    kinds, counts = np.unique(tallies.reshape(len(groups), -1), axis=0, return_counts=True)
    generator = np.random.default_rng(7122)
    shares = []
    for some in np.diff(np.arange(0, num_draws + _DRAWS_AT_ONCE, _DRAWS_AT_ONCE).clip(max=num_draws)):
        drawn = generator.multinomial(len(groups), counts / len(groups), some) @ kinds
        hits, tries = np.moveaxis(drawn.reshape(some, len(sides), 2), 2, 0)
        shares.append((hits / tries).mean(axis=1))
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975])
    return float(low), float(high)


def _trials(k: int, ranks: np.ndarray, groups: np.ndarray) -> Trials:
    return Trials(ranks <= k, np.ones(len(ranks), np.int64), groups)


def _miss(k: int, num_answers: int, num_candidates: int) -> float:
    """The probability that a random order has no answer among its first `k`."""
    k = min(k, num_candidates)
    factors = [max(0, num_candidates - k - i) / (num_candidates - i) for i in range(num_answers)]
    return float(np.prod(factors))


def _chance_median(num_answers: np.ndarray, num_candidates: int) -> float:
    """The lowest k at which the recall of a random order is at least one half."""
    low, high = 1, num_candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_at(middle, num_answers, num_candidates) >= 0.5 else (middle + 1, high)
    return float(low)
