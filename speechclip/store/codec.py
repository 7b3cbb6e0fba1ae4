"""Codecs: how the numbers of a feature become arrays on storage, and how far a stored number may be off.

A codec turns the frames of one utterance into one or several arrays, its members. Each member is a file
`<key>.<member>.npy` in the shard. `fp16` and `fp32` have one member, `hidden`, which holds the numbers themselves.
A codec that stores small integers would have a second member with their scales.

A vector is one row of a matrix, which stores it as plain numbers of the codec's `dtype`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from speechclip.spec import SAMPLE_RATE, CodecName, EncoderSpec

# The encoded frames of one utterance, or of a window of it, by the name of the member.
Members = Mapping[str, Shaped[np.ndarray, "layers rows numbers"]]


class Member(NamedTuple):
    """One array of an encoded utterance, of shape (layers, rows, `width`).

    A row holds what belongs to `frames_per_row` successive frames. The first member of a codec has one row a frame.
    """

    name: str
    dtype: np.dtype[Any]
    width: int
    frames_per_row: int = 1

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.width * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """The rows [first, last) that hold the frames [start, stop)."""
        return start // self.frames_per_row, -(-stop // self.frames_per_row)


class Codec(ABC):
    """One way to store the numbers of a feature.

    `dtype` is the type of the numbers that an encoder hands over, that a reader gets and that a matrix stores.
    """

    def __init__(self, name: CodecName, dtype: str) -> None:
        self.name, self.dtype = name, np.dtype(dtype)

    @abstractmethod
    def members(self, width: int) -> tuple[Member, ...]:
        """The arrays that frames of that width become, in their order in the shard."""

    @abstractmethod
    def encode(self, frames: Shaped[np.ndarray, "layers frames width"]) -> Members:
        """The arrays to be stored. The same frames always give the same bytes."""

    @abstractmethod
    def decode(self, members: Members, start: int, stop: int) -> Shaped[np.ndarray, "layers frames width"]:
        """The frames [start, stop) as `dtype`, from the rows of each member that hold these frames."""

    @abstractmethod
    def bound(self, block: Shaped[np.ndarray, "..."]) -> float:
        """The most that a number of this block may change when the block is encoded and decoded."""

    @property
    def fill(self) -> float:
        """The number that fills a matrix's rows that are not written."""
        return float("nan")

    def is_absent(self, rows: Shaped[np.ndarray, "rows width"]) -> Bool[np.ndarray, " rows"]:
        """Which rows of a matrix are not written."""
        absent: np.ndarray = np.isnan(rows).all(axis=1)
        return absent

    def refuses(self, feature: Shaped[np.ndarray, "..."]) -> str | None:
        """What this codec can't store and the feature holds: "NaN" or "infinity". None if all numbers are finite."""
        if _is_finite(feature):
            return None
        return "NaN" if np.isnan(feature).any() else "infinity"


class FloatCodec(Codec):
    """The numbers themselves, rounded to a type of floating point.

    Rounding changes a number by at most half a unit in its last place (IEEE 754, round to nearest).
    """

    def members(self, width: int) -> tuple[Member, ...]:
        """One array, `hidden`."""
        return (Member("hidden", self.dtype, width),)

    def encode(self, frames: Shaped[np.ndarray, "layers frames width"]) -> Members:
        """The frames in the codec's type. Nothing is copied if they have it already."""
        return {"hidden": np.ascontiguousarray(frames, dtype=self.dtype)}

    def decode(self, members: Members, start: int, stop: int) -> Shaped[np.ndarray, "layers frames width"]:
        """The stored array itself."""
        return members["hidden"]

    def bound(self, block: Shaped[np.ndarray, "..."]) -> float:
        """Half a unit in the last place of the block's largest number."""
        largest = float(np.abs(block.astype(np.float64)).max(initial=0.0))
        kind = np.finfo(self.dtype)
        return max(largest * float(kind.eps), float(kind.smallest_subnormal)) / 2


CODECS: dict[CodecName, Codec] = {codec.name: codec for codec in (FloatCodec("fp16", "<f2"), FloatCodec("fp32", "<f4"))}


def codec_of(spec: EncoderSpec) -> Codec:
    """The codec of a feature set."""
    return CODECS[spec.codec]


def stored_bytes(spec: EncoderSpec, seconds: float) -> int:
    """The bytes that a feature of so many seconds takes, without the headers of its shard."""
    codec = codec_of(spec)
    if not spec.is_frames:
        return spec.width * codec.dtype.itemsize
    num_frames = spec.num_frames(round(seconds * SAMPLE_RATE))
    rows = ((member, member.rows(0, num_frames)[1]) for member in codec.members(spec.width))
    return len(spec.layers) * sum(num_rows * member.row_bytes for member, num_rows in rows)


def _is_finite(feature: np.ndarray) -> bool:
    # The bits of fp16 tell it five times as fast as its values.
    if feature.dtype == np.float16:
        return bool((feature.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(feature).all())
