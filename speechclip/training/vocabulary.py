"""The reduced vocabulary: the CLIP tokens that occur in a corpus. A cascaded head chooses its keywords from them.

Source: docs/model.md, "Vocabulary".
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property

import msgspec
import numpy as np

from speechclip.encoders.prepare import clip_tokenizer, clip_tokens
from speechclip.errors import EmptyText, InvalidInput
from speechclip.records import Record, to_json

# CLIP's ids of its special tokens.
PADDING, START, END = 0, 49406, 49407


class Vocabulary(Record, frozen=True, dict=True):
    """CLIP's token ids. The position of an id in `ids` is the row of its embedding in a head's text tower."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids) or not {PADDING, START, END} <= set(self.ids):
            raise InvalidInput(
                f"a vocabulary of {len(self.ids)} ids: each must occur once, and {PADDING}, {START} and {END} must be "
                "among them",
                "make it by `count_tokens`",
            )
        # Python would count a negative id from the end of CLIP's tokens.
        if unknown := [token for token in self.ids if not 0 <= token <= END]:
            raise InvalidInput(
                f"a vocabulary with the token {unknown[0]}, CLIP has 0 to {END}", "make it by `count_tokens`"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the ids in their order."""
        return hashlib.sha256(msgspec.json.encode(self.ids)).hexdigest()

    def words(self, positions: Sequence[int]) -> list[str]:
        """The tokens at these positions as CLIP writes them: ``dog</w>`` for a token that ends a word."""
        decoder = clip_tokenizer().decoder
        return [decoder[self.ids[position]] for position in positions]

    def to_bytes(self) -> bytes:
        """The content of `vocabulary.json`."""
        return to_json(self)


def count_tokens(captions: Iterable[str]) -> Vocabulary:
    """The vocabulary of these captions: the most frequent token first, of equally frequent ones the lower id first.

    As in the official code, start, end and the padding to 77 tokens are counted too. So padding is first.
    """
    counts = np.zeros(END + 1, np.int64)
    for caption in captions:
        with suppress(EmptyText):
            np.add.at(counts, clip_tokens(caption), 1)
    for token in (PADDING, START, END):
        counts[token] = max(counts[token], 1)
    order = np.lexsort((np.arange(len(counts)), -counts))
    return Vocabulary(ids=tuple(int(token) for token in order[: np.count_nonzero(counts)]))
