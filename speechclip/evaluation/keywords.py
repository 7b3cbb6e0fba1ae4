"""Which words a head with keywords chose: hit rates and perplexities over a split.

Source: docs/model.md, "Evaluation protocol".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speechclip.encoders.prepare import clip_tokenizer, clip_tokens
from speechclip.errors import EmptyText
from speechclip.evaluation.recall import Trials, bootstrap_interval
from speechclip.evaluation.token_space import NUM_NEIGHBOURS, Scoring, TokenSpace, first_places
from speechclip.heads import Keywords
from speechclip.heads.quantizer import Quantizer, Usage, UsageFigures
from speechclip.records import Record
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary

Neighbours = Literal["token", "query"]
GoldKind = Literal["literal", "plain"]
# Scores of vectors against the whole vocabulary that are held at once.
_BLOCK_SCORES = 16_000_000
# Above every id of CLIP: keeps the pairs of a row and an id apart.
_ROW = 2**16


class HitRate(Record, frozen=True):
    """How often a keyword is near a word of the caption, as shares from 0 to 1.

    `neighbours`: the five tokens nearest to the chosen `token`'s embedding, as the official code has it, or to the
    `query` from which it was chosen. `gold`: `literal` counts start, end and padding among the caption's words, as
    officially; `plain` does not. `average` is over all keywords (with eight in every row the mean of the slots),
    `interval` its 95 % bootstrap interval, `elsewhere` the same keywords against the captions of other images.
    """

    neighbours: Neighbours
    gold: GoldKind
    per_slot: tuple[float, ...]
    average: float
    interval: tuple[float, float]
    elsewhere: float


class KeywordReport(Record, frozen=True):
    """The keywords of a split. `num_per_slot` counts the captioned utterances that fill each slot.

    `code_perplexity` is the exponential of the entropy of the tokens chosen, `prob_perplexity` that of the mean softmax
    of the cosines, without temperature; both over all keywords of the split.
    """

    num_utterances: int
    num_captioned: int
    num_per_slot: tuple[int, ...]
    vocabulary_size: int
    num_distinct: int
    code_perplexity: float
    prob_perplexity: float
    scoring: Scoring
    hit_rates: tuple[HitRate, ...]


@dataclass(frozen=True)
class Readings:
    """All keywords of some utterances, one entry each, by rising row and slot; tokens are places."""

    rows: Int[np.ndarray, " keywords"]
    slots: Int[np.ndarray, " keywords"]
    tokens: Int[np.ndarray, " keywords"]
    near_token: Int[np.ndarray, "keywords neighbours"]
    near_query: Int[np.ndarray, "keywords neighbours"]
    usage: UsageFigures


class KeywordReader:
    """Takes the keywords of batch after batch, and keeps of them what the metrics need: a few numbers a keyword."""

    def __init__(
        self,
        quantizer: Quantizer,
        embeddings: Float[Tensor, "vocabulary width"],
        scoring: Scoring = "cosine",
    ) -> None:
        self.embeddings, self.space = embeddings, TokenSpace(embeddings, scoring)
        self._usage = Usage(quantizer)
        self._found: list[np.ndarray] = []

    def add(self, rows: Sequence[int], keywords: Keywords) -> None:
        """The keywords of these rows, in the batch's order."""
        is_filled = torch.arange(keywords.tokens.shape[1], device=keywords.counts.device) < keywords.counts[:, None]
        places, slots = is_filled.nonzero(as_tuple=True)
        queries = keywords.queries[is_filled].float()
        self._usage.add(keywords)
        near = self._near(queries)
        numbers = torch.tensor(rows, device=places.device)[places]
        columns = torch.stack([numbers, slots, keywords.tokens[is_filled]], dim=1)
        self._found.append(torch.cat([columns, near], dim=1).cpu().numpy())

    def readings(self) -> Readings:
        """All that was added."""
        found = np.concatenate(self._found)
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
        distinct, which = np.unique(found[:, 2], return_inverse=True)
        tokens = self.embeddings[torch.from_numpy(distinct).to(self.embeddings.device)]
        return Readings(
            rows=found[:, 0],
            slots=found[:, 1],
            tokens=found[:, 2],
            near_token=self._near(tokens).cpu().numpy()[which],
            near_query=found[:, 3:],
            usage=self._usage.figures(),
        )

    def _near(self, vectors: Float[Tensor, "vectors width"]) -> Int[Tensor, "vectors neighbours"]:
        size = len(self.embeddings)
        blocks = torch.split(vectors, max(1, _BLOCK_SCORES // size))
        return torch.cat([first_places(self.space.scores(some), min(NUM_NEIGHBOURS, size)) for some in blocks])


@dataclass(frozen=True)
class Gold:
    """The words of a caption as CLIP's ids: as the official code reads them back, and without special tokens."""

    literal: frozenset[int]
    plain: frozenset[int]


def gold_tokens(caption: str | None) -> Gold | None:
    """The ids that a keyword of this caption may hit; None where there is no caption, or no token is left of it.

    Literally they are ``encode(decode(ids))`` of the whole context: start, end and some runs of the padding, which
    decodes as exclamation marks, come with the caption's own.
    """
    try:
        tokens = [int(token) for token in clip_tokens(caption or "")]
    except EmptyText:
        return None
    tokenizer = clip_tokenizer()
    literal = frozenset(tokenizer.encode(tokenizer.decode(tokens)))
    return Gold(literal, frozenset(tokens) - {START, END, PADDING})


def read_keywords(
    readings: Readings,
    vocabulary: Vocabulary,
    captions: Sequence[str | None],
    groups: Int[np.ndarray, " rows"],
    *,
    scoring: Scoring = "cosine",
) -> KeywordReport:
    """The report of all rows' keywords; rows without a caption count in the perplexities alone."""
    golds = [gold_tokens(caption) for caption in captions]
    is_captioned = np.array([gold is not None for gold in golds])
    used = is_captioned[readings.rows]
    return KeywordReport(
        num_utterances=len(captions),
        num_captioned=int(is_captioned.sum()),
        num_per_slot=tuple(np.bincount(readings.slots[used]).tolist()),
        vocabulary_size=len(vocabulary.ids),
        num_distinct=len(np.unique(readings.tokens)),
        code_perplexity=readings.usage.code_perplexity,
        prob_perplexity=readings.usage.prob_perplexity,
        scoring=scoring,
        hit_rates=tuple(_rates(readings, vocabulary, golds, groups, used)) if used.any() else (),
    )


def _rates(
    readings: Readings,
    vocabulary: Vocabulary,
    golds: Sequence[Gold | None],
    groups: Int[np.ndarray, " rows"],
    used: Bool[np.ndarray, " keywords"],
) -> list[HitRate]:
    """The four variants."""
    rows, slots = readings.rows[used], readings.slots[used]
    asked = np.unique(rows)
    # In the order of groups, as far on as the largest is long: another image's caption, unless one holds over half.
    order = asked[np.argsort(groups[asked], kind="stable")]
    others = np.zeros(len(golds), np.int64)
    others[order] = np.roll(order, -int(np.unique(groups[asked], return_counts=True)[1].max()))
    ids = np.array(vocabulary.ids)
    near: dict[Neighbours, np.ndarray] = {"token": readings.near_token, "query": readings.near_query}
    kinds: tuple[GoldKind, ...] = ("literal", "plain")
    found = []
    for neighbours, places in near.items():
        for kind in kinds:
            sets = [getattr(gold, kind) if gold else frozenset() for gold in golds]
            hits = find_hits(rows, ids[places[used]], sets)
            tries = np.bincount(rows, minlength=len(golds))
            per_row = Trials(np.bincount(rows, hits, len(golds))[asked], tries[asked], groups[asked])
            found.append(
                HitRate(
                    neighbours=neighbours,
                    gold=kind,
                    per_slot=tuple((np.bincount(slots, hits) / np.maximum(np.bincount(slots), 1)).tolist()),
                    average=float(hits.mean()),
                    interval=bootstrap_interval(per_row),
                    elsewhere=float(find_hits(others[rows], ids[places[used]], sets).mean()),
                )
            )
    return found


def find_hits(
    rows: Int[np.ndarray, " keywords"], ids: Int[np.ndarray, "keywords neighbours"], gold: Sequence[frozenset[int]]
) -> Bool[np.ndarray, " keywords"]:
    """Whether any of each keyword's ids is among the gold ids of its row."""
    pairs = np.array([row * _ROW + token for row, tokens in enumerate(gold) for token in tokens], np.int64)
    return np.asarray(np.isin(rows[:, None] * _ROW + ids, pairs).any(axis=1))
