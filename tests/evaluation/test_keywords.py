"""The figures of keywords, compared with plain loops, on a small vocabulary of CLIP's tokens."""

import math

import numpy as np
import pytest
import torch

from speechclip.evaluation.keywords import KeywordReader, Readings, find_hits, gold_tokens, read_keywords
from speechclip.evaluation.token_space import Scoring
from speechclip.heads import Keywords
from speechclip.heads.quantizer import Quantizer
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary, count_tokens

CAPTIONS = ("a dog runs", "a red ball", None, "two dogs run on the grass", "a dog and a ball", "")
SLOTS = 4
BARRED = (PADDING, START, END)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return count_tokens([caption for caption in CAPTIONS if caption])


@pytest.fixture(scope="module")
def matrix(vocabulary: Vocabulary) -> torch.Tensor:
    return torch.randn(len(vocabulary.ids), 6, generator=torch.Generator().manual_seed(3))


def barred(vocabulary: Vocabulary) -> torch.Tensor:
    return torch.tensor([vocabulary.ids.index(token) for token in BARRED])


def choose(matrix: torch.Tensor, vocabulary: Vocabulary, counts: list[int]) -> Keywords:
    """Keywords of random queries: the token with the highest cosine that is not excluded."""
    queries = torch.randn(len(counts), SLOTS, 6, generator=torch.Generator().manual_seed(4))
    cosines = torch.nn.functional.cosine_similarity(queries[:, :, None], matrix[None, None], dim=-1)
    tokens = cosines.index_fill(2, barred(vocabulary), float("-inf")).argmax(-1)
    return Keywords(tokens=tokens, queries=queries, chosen=matrix[tokens], counts=torch.tensor(counts))


def some_of(keywords: Keywords, rows: list[int]) -> Keywords:
    return Keywords(
        tokens=keywords.tokens[rows], queries=keywords.queries[rows], chosen=keywords.chosen[rows],
        counts=keywords.counts[rows],
    )  # fmt: skip


def read(
    matrix: torch.Tensor,
    vocabulary: Vocabulary,
    keywords: Keywords,
    batches: list[list[int]],
    scoring: Scoring = "cosine",
) -> Readings:
    quantizer = Quantizer(matrix, barred(vocabulary), 0.1, is_learnable=False)
    reader = KeywordReader(quantizer, matrix, scoring)
    for rows in batches:
        reader.add(rows, some_of(keywords, rows))
    return reader.readings()


def nearest(matrix: torch.Tensor, vector: torch.Tensor) -> list[int]:
    cosines = [torch.cosine_similarity(row.double(), vector.double(), dim=0).item() for row in matrix]
    return sorted(range(len(matrix)), key=lambda place: -cosines[place])[:5]


def test_the_literal_gold_set_is_what_the_tokenizer_reads_back() -> None:
    gold = gold_tokens("A dog runs.")
    assert gold is not None
    # "a", "dog", "runs" and the full stop, then start and end, then what 71 exclamation marks of padding become.
    assert gold.plain == {320, 1929, 5586, 269}
    assert gold.literal - gold.plain >= {START, END, 30146}
    assert PADDING not in gold.literal
    long = gold_tokens("a " * 100)
    assert long is not None
    assert (long.literal, long.plain) == ({320, START, END}, {320})


@pytest.mark.parametrize("caption", [None, "", "  ", "\x00"])
def test_no_caption_has_no_gold_set(caption: str | None) -> None:
    assert gold_tokens(caption) is None


def test_readings_are_in_the_order_of_rows_for_all_batches(matrix: torch.Tensor, vocabulary: Vocabulary) -> None:
    keywords = choose(matrix, vocabulary, [4, 2, 0, 1, 3, 4])
    whole = read(matrix, vocabulary, keywords, [[0, 1, 2, 3, 4, 5]])
    assert whole.rows.tolist() == [0] * 4 + [1] * 2 + [3] + [4] * 3 + [5] * 4
    assert whole.slots.tolist() == [0, 1, 2, 3, 0, 1, 0, 0, 1, 2, 0, 1, 2, 3]
    parts = read(matrix, vocabulary, keywords, [[5], [2], [3, 0], [1, 4]])
    for name in ("rows", "slots", "tokens", "near_token", "near_query"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.usage.prob_perplexity == pytest.approx(whole.usage.prob_perplexity)
    assert parts.usage.code_perplexity == pytest.approx(whole.usage.code_perplexity)


def test_neighbours_are_those_of_the_token_and_of_the_query(
    matrix: torch.Tensor, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = choose(matrix, vocabulary, [4] * 6)
    monkeypatch.setattr("speechclip.evaluation.keywords._BLOCK_SCORES", 50)
    found = read(matrix, vocabulary, keywords, [[0, 1, 2, 3, 4, 5]])
    for place, (row, slot) in enumerate(zip(found.rows, found.slots, strict=True)):
        assert found.tokens[place] == keywords.tokens[row, slot]
        assert found.near_token[place].tolist() == nearest(matrix, keywords.chosen[row, slot])
        assert found.near_query[place].tolist() == nearest(matrix, keywords.queries[row, slot])
        assert found.near_token[place, 0] == found.tokens[place]


def test_perplexities_are_over_all_keywords_and_bar_the_special_tokens(
    matrix: torch.Tensor, vocabulary: Vocabulary
) -> None:
    keywords = choose(matrix, vocabulary, [4, 2, 0, 1, 3, 4])
    found = read_keywords(
        read(matrix, vocabulary, keywords, [[0, 1], [2, 3, 4, 5]]), vocabulary, CAPTIONS, np.arange(6)
    )
    softmaxes, chosen = [], []
    for row, count in enumerate(keywords.counts.tolist()):
        for slot in range(count):
            cosines = torch.cosine_similarity(matrix, keywords.queries[row, slot][None])
            cosines[barred(vocabulary)] = float("-inf")
            softmaxes.append(cosines.softmax(0).numpy())
            chosen.append(keywords.tokens[row, slot].item())
    mean = np.mean(softmaxes, axis=0)
    assert found.prob_perplexity == pytest.approx(math.exp(-sum(p * math.log(p + 1e-7) for p in mean)), rel=1e-5)
    shares = [chosen.count(token) / len(chosen) for token in set(chosen)]
    assert found.code_perplexity == pytest.approx(math.exp(-sum(p * math.log(p + 1e-7) for p in shares)))
    assert found.num_distinct == len(shares)
    assert found.prob_perplexity < len(vocabulary.ids) - 2


def test_hit_rates_are_those_of_a_plain_loop(matrix: torch.Tensor, vocabulary: Vocabulary) -> None:
    counts = [4, 2, 4, 1, 3, 4]
    keywords = choose(matrix, vocabulary, counts)
    found = read_keywords(
        read(matrix, vocabulary, keywords, [[0, 1], [2, 3, 4, 5]]), vocabulary, CAPTIONS, np.array([0, 0, 1, 1, 2, 2])
    )
    assert (found.num_utterances, found.num_captioned, found.num_per_slot) == (6, 4, (4, 3, 2, 1))
    assert len({(rate.neighbours, rate.gold) for rate in found.hit_rates}) == 4
    for rate in found.hit_rates:
        hits: list[list[bool]] = [[] for _ in range(SLOTS)]
        for row, caption in enumerate(CAPTIONS):
            gold = gold_tokens(caption)
            for slot in range(counts[row] if gold else 0):
                vector = (keywords.chosen if rate.neighbours == "token" else keywords.queries)[row, slot]
                ids = {vocabulary.ids[place] for place in nearest(matrix, vector)}
                hits[slot].append(bool(ids & getattr(gold, rate.gold)))
        assert rate.per_slot == pytest.approx([np.mean(slot) for slot in hits])
        assert rate.average == pytest.approx(np.mean([hit for slot in hits for hit in slot]))
        assert rate.interval[0] <= rate.average <= rate.interval[1]


def test_a_start_token_nearby_is_a_literal_hit_and_no_plain_one(vocabulary: Vocabulary) -> None:
    # All tokens have the same direction. So the five neighbours are the first five, start and end among them.
    matrix = torch.ones(len(vocabulary.ids), 6)
    queries = torch.ones(2, 1, 6)
    last = len(vocabulary.ids) - 1
    keywords = Keywords(
        tokens=torch.full((2, 1), last), queries=queries, chosen=queries, counts=torch.ones(2, dtype=torch.int64)
    )
    captions = ["seven purple whales", "seven purple whales"]
    readings = read(matrix, vocabulary, keywords, [[0, 1]])
    assert readings.near_query.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert {START, END} & {vocabulary.ids[place] for place in range(5)}
    rates = {rate.gold: rate.average for rate in read_keywords(readings, vocabulary, captions, np.arange(2)).hit_rates}
    assert rates == {"literal": 1, "plain": 0}


def test_keywords_are_also_compared_with_the_caption_of_another_image(vocabulary: Vocabulary) -> None:
    # Each token has its own direction. The keyword is a word of its own caption only.
    matrix = torch.eye(len(vocabulary.ids))
    words = ["dog", "ball", "grass"]
    places = [vocabulary.ids.index(max(gold_tokens(word).plain)) for word in words]  # type: ignore[union-attr]
    chosen = matrix[places][:, None]
    keywords = Keywords(
        tokens=torch.tensor(places)[:, None], queries=chosen, chosen=chosen, counts=torch.ones(3, dtype=torch.int64)
    )
    report = read_keywords(read(matrix, vocabulary, keywords, [[0, 1, 2]]), vocabulary, words, np.arange(3))
    plain = [rate for rate in report.hit_rates if rate.gold == "plain" and rate.neighbours == "token"]
    assert plain[0].average == 1
    # The other four neighbours are the first tokens: "a", the special ones, and at most one of the words.
    assert plain[0].elsewhere < 1


def test_hits_do_not_cross_rows() -> None:
    gold = [frozenset({7}), frozenset({65_535, 0}), frozenset()]
    rows, ids = np.array([0, 0, 1, 1, 2]), np.array([[7, 1], [65_535, 0], [7, 0], [6, 1], [7, 0]])
    assert find_hits(rows, ids, gold).tolist() == [True, False, True, False, False]


def test_without_captions_there_are_only_perplexities(matrix: torch.Tensor, vocabulary: Vocabulary) -> None:
    keywords = choose(matrix, vocabulary, [4, 4])
    report = read_keywords(read(matrix, vocabulary, keywords, [[0, 1]]), vocabulary, [None, ""], np.arange(2))
    assert (report.num_captioned, report.hit_rates) == (0, ())
    assert report.code_perplexity > 1


def test_the_pseudo_inverse_changes_neighbours_but_no_perplexity(matrix: torch.Tensor, vocabulary: Vocabulary) -> None:
    keywords = choose(matrix, vocabulary, [4] * 6)
    cosine = read(matrix, vocabulary, keywords, [[0, 1, 2, 3, 4, 5]])
    other = read(matrix, vocabulary, keywords, [[0, 1, 2, 3, 4, 5]], "pseudo-inverse")
    assert cosine.usage == other.usage
    inverse = torch.linalg.pinv(matrix.T.double())
    scores = [(inverse @ vector.double()) for vector in keywords.queries.reshape(-1, 6)]
    assert other.near_query.tolist() == [row.argsort(descending=True, stable=True)[:5].tolist() for row in scores]
    assert (cosine.near_query != other.near_query).any()
