"""The keywords of one utterance, each with the tokens that are nearest to it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from speechclip.errors import InvalidInput
from speechclip.evaluation.token_space import NUM_NEIGHBOURS, Scoring, TokenSpace, top_positions
from speechclip.heads import KeywordHead
from speechclip.records import Record
from speechclip.training.run import Run
from speechclip.training.vocabulary import Vocabulary


class NearToken(Record, frozen=True):
    """A token of the reduced vocabulary, CLIP's id of it, and its score by the chosen scoring (by default a cosine)."""

    token: str
    id: int
    score: float


class Keyword(Record, frozen=True):
    """The keyword in one slot, counted from 1.

    `chosen` is the token that the head chose; its score is the cosine to the query z_k. `near_chosen` are the tokens
    nearest to that token, `near_query` those nearest to z_k.
    """

    slot: int
    chosen: NearToken
    near_chosen: tuple[NearToken, ...]
    near_query: tuple[NearToken, ...]


def discover(
    run: Run, hidden: Float[np.ndarray, "layers frames width"], scoring: Scoring = "cosine"
) -> tuple[Keyword, ...]:
    """The keywords of one utterance, from its frames; `InvalidInput` if the head chooses no keywords."""
    head = run.head
    if not isinstance(head, KeywordHead) or run.vocabulary is None:
        raise InvalidInput(
            f"the head of recipe {run.info.identity.recipe.name} chooses no keywords", "name a cascaded or hybrid run"
        )
    with torch.inference_mode():
        found = head(torch.from_numpy(hidden.copy())[None], torch.tensor([hidden.shape[1]])).keywords
        assert found is not None
        count = int(found.counts[0])
        tokens, queries = found.tokens[0, :count], found.queries[0, :count].float()
        space = TokenSpace(head.tower.embeddings, scoring)
        cosines = space.cosines(queries).gather(1, tokens[:, None])[:, 0]
        near_chosen = _nearest(space, head.tower.embeddings[tokens], run.vocabulary)
        near_query = _nearest(space, queries, run.vocabulary)
    words = run.vocabulary.words(tokens.tolist())
    return tuple(
        Keyword(
            slot=slot + 1,
            chosen=NearToken(
                token=words[slot], id=run.vocabulary.ids[int(tokens[slot])], score=round(float(cosines[slot]), 6)
            ),
            near_chosen=near_chosen[slot],
            near_query=near_query[slot],
        )
        for slot in range(count)
    )


def _nearest(space: TokenSpace, vectors: Tensor, vocabulary: Vocabulary) -> list[tuple[NearToken, ...]]:
    """For each vector the tokens nearest to it, nearest first."""
    scores = space.scores(vectors)
    positions = top_positions(scores, min(NUM_NEIGHBOURS, scores.shape[1]))
    values = scores.gather(1, positions).tolist()
    words = iter(vocabulary.words(positions.flatten().tolist()))
    return [
        tuple(
            NearToken(token=next(words), id=vocabulary.ids[position], score=round(value, 6))
            for position, value in zip(row, row_values, strict=True)
        )
        for row, row_values in zip(positions.tolist(), values, strict=True)
    ]
