"""How good the keywords of a head are: hit rates and perplexities over a split.

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
from speechclip.evaluation.token_space import NUM_NEIGHBOURS, Scoring, TokenSpace, top_positions
from speechclip.heads import Keywords
from speechclip.heads.quantizer import Quantizer, Usage, UsageFigures
from speechclip.records import Record
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary

Neighbours = Literal["token", "query"]
GoldKind = Literal["literal", "plain"]
# How many scores of vectors against the whole vocabulary are in memory at once.
_BLOCK_SCORES = 16_000_000
# More than any id of CLIP: `row * _ROW + id` is a different number for each pair of a row and an id.
_ROW = 2**16


class HitRate(Record, frozen=True):
    """How often a keyword hits a word of the caption, as shares from 0 to 1, by one of four rules.

    A keyword hits if one of five neighbours is a gold word. `neighbours`: the five tokens nearest to the chosen
    `token`, as in the official code, or to the `query` from which it was chosen. `gold`: with `literal` start, end and
    padding also count as words of the caption, as in the official code; with `plain` they do not.

    `per_slot` has a share for each slot, `average` one for all keywords together. `interval` is its 95 % bootstrap
    interval. `elsewhere` is the same average if each utterance is compared with the caption of another image.
    """

    neighbours: Neighbours
    gold: GoldKind
    per_slot: tuple[float, ...]
    average: float
    interval: tuple[float, float]
    elsewhere: float


class KeywordReport(Record, frozen=True):
    """The figures of all keywords of a split.

    `num_per_slot` is the number of captioned utterances that fill each slot, `num_distinct` that of different tokens
    chosen. `code_perplexity` is the exponential of the entropy of the chosen tokens. `prob_perplexity` is that of the
    mean softmax of the cosines, without temperature. Both are over all keywords of the split.
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
    """All keywords of some utterances, one entry for each keyword, sorted by row, then by slot.

    Tokens and neighbours are positions in the reduced vocabulary.
    """

    rows: Int[np.ndarray, " keywords"]
    slots: Int[np.ndarray, " keywords"]
    tokens: Int[np.ndarray, " keywords"]
    near_token: Int[np.ndarray, "keywords neighbours"]
    near_query: Int[np.ndarray, "keywords neighbours"]
    usage: UsageFigures


class KeywordReader:
    """Collects the keywords of many batches. It keeps a few numbers for each keyword, all that the figures need."""

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
        """Add the keywords of one batch. `rows` are the numbers of its utterances, in the batch's order."""
        is_filled = torch.arange(keywords.tokens.shape[1], device=keywords.counts.device) < keywords.counts[:, None]
        places, slots = is_filled.nonzero(as_tuple=True)
        queries = keywords.queries[is_filled].float()
        self._usage.add(keywords)
        near = self._near(queries)
        numbers = torch.tensor(rows, device=places.device)[places]
        columns = torch.stack([numbers, slots, keywords.tokens[is_filled]], dim=1)
        self._found.append(torch.cat([columns, near], dim=1).cpu().numpy())

    def readings(self) -> Readings:
        """All keywords that were added."""
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
        return torch.cat([top_positions(self.space.scores(some), min(NUM_NEIGHBOURS, size)) for some in blocks])


@dataclass(frozen=True)
class Gold:
    """The ids of CLIP's tokens that count as words of a caption, by both rules of `HitRate.gold`."""

    literal: frozenset[int]
    plain: frozenset[int]


def gold_tokens(caption: str | None) -> Gold | None:
    """The ids that a keyword may hit. None if there is no caption, or CLIP's tokenizer leaves nothing of it.

    The literal ones are ``encode(decode(ids))`` of all 77 ids, as the official code computes them. So start and end
    are among them, and tokens of padding, which is decoded as exclamation marks.
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
    """The report of all keywords. `captions` and `groups` have an entry for each row.

    A row without a caption counts in the perplexities only.
    """
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
    """The hit rates by the four rules. `used` says which keywords belong to a row with a caption."""
    rows, slots = readings.rows[used], readings.slots[used]
    asked = np.unique(rows)
    # For `elsewhere`, each row gets the caption of a row further on, in the order of groups. The distance is the size
    # of the largest group, so the caption is of another group unless one group has more than half of all rows.
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
    """For each keyword whether one of its `ids` is among the gold ids of its row."""
    pairs = np.array([row * _ROW + token for row, tokens in enumerate(gold) for token in tokens], np.int64)
    return np.asarray(np.isin(rows[:, None] * _ROW + ids, pairs).any(axis=1))
