"""The reduced vocabulary: the CLIP tokens of a corpus, from which a cascaded head chooses.

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

PADDING, START, END = 0, 49406, 49407


class Vocabulary(Record, frozen=True, dict=True):
    """CLIP's token ids, a place in `ids` each; the rows of a head's text tower stand in this order."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids) or not {PADDING, START, END} <= set(self.ids):
            raise InvalidInput(
                f"a vocabulary of {len(self.ids)} ids: each must occur once, and {PADDING}, {START} and {END} be there"
            )
        # A negative one would be counted from the end of CLIP's tokens.
        if strange := [token for token in self.ids if not 0 <= token <= END]:
            raise InvalidInput(f"a vocabulary with the token {strange[0]}, CLIP has 0 to {END}")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the ids in their order."""
        return hashlib.sha256(msgspec.json.encode(self.ids)).hexdigest()

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each id stands."""
        return {token: place for place, token in enumerate(self.ids)}

    def words(self, places: Sequence[int]) -> list[str]:
        """The tokens at these places as CLIP writes them, a word's end as `</w>`."""
        decoder = clip_tokenizer().decoder
        return [decoder[self.ids[place]] for place in places]

    def to_bytes(self) -> bytes:
        """The JSON file."""
        return to_json(self)


def count_tokens(captions: Iterable[str]) -> Vocabulary:
    """The vocabulary of these captions: by falling count, equal counts by rising id.

    As officially, padding to 77 tokens is counted too, which puts it first, and so are start and end.
    """
    counts = np.zeros(END + 1, np.int64)
    for caption in captions:
        with suppress(EmptyText):
            np.add.at(counts, clip_tokens(caption), 1)
    for token in (PADDING, START, END):
        counts[token] = max(counts[token], 1)
    order = np.lexsort((np.arange(len(counts)), -counts))
    return Vocabulary(ids=tuple(int(token) for token in order[: np.count_nonzero(counts)]))
