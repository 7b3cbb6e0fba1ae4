"""What training, evaluation and search need of frames, whether they are stored or encoded on the spot."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Shaped

from speechclip.spec import EncoderSpec


class FrameReader(Protocol):
    """The frames of many utterances, by key.

    `store.Frames` reads them from a snapshot. An object that computes them may take its place. `spec` states what made
    the frames, and its codec states their type. `fingerprint` names the feature set to which they belong.
    """

    spec: EncoderSpec
    fingerprint: str

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, key: str) -> Shaped[np.ndarray, "layers frames width"]: ...

    def num_frames(self, key: str) -> int:
        """How many frames the utterance has. Its frames are not read for this."""

    def window(
        self, key: str, *, layers: Sequence[int] | None = None, start: int = 0, stop: int | None = None
    ) -> Shaped[np.ndarray, "layers frames width"]:
        """Frames [start, stop) of the named hidden states, in that order. By default all of them."""
