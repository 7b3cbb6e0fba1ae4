"""Windows: whether an utterance is encoded whole, or as crops of 6.4 s like those of the official training.

Both rules encode an utterance of at most 102,400 samples at 16 kHz (6.4 s) whole.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from speechclip.errors import InvalidInput
from speechclip.spec import CROP_SAMPLES, EncoderSpec, Window, crops_rule

FULL_RULE = "full/1"
MAX_CROPS = 64
Array = np.ndarray[Any, Any]


def resolve_window(window: Window, encoder_name: str) -> str:
    """The spec's rule for ``full`` or ``crops=K``. `InvalidInput` for any other text."""
    if window == "full":
        return FULL_RULE
    found = re.fullmatch(r"crops=([1-9]\d?)", window)
    if found is None or int(found[1]) > MAX_CROPS:
        raise InvalidInput(
            f"{encoder_name}: there is no window {window!r}", f"write full, or crops=K with K from 1 to {MAX_CROPS}"
        )
    return crops_rule(int(found[1]))


def crop_offsets(key: str, num_crops: int, num_samples: int) -> list[int]:
    """The sample at which each crop of that asset begins, from 0 to `num_samples` - 102,401.

    It depends on the key, the number of crops and the crop's own number alone. As in the official `randint`, the upper
    end is exclusive, so the last possible offset never occurs (docs/model.md, "Preprocessing").
    """
    digests = [hashlib.sha256(f"{key} {num_crops} {number}".encode()).digest() for number in range(num_crops)]
    return [int.from_bytes(digest[:8], "little") % (num_samples - CROP_SAMPLES) for digest in digests]


def cut_crops(spec: EncoderSpec, key: str, waveform: Array) -> Array:
    """The crops of a waveform, joined in one array.

    The waveform is returned unchanged if the spec's window is ``full`` or the waveform is not longer than a crop.
    `InvalidInput` if the offsets are needed and `key` is empty.
    """
    if not spec.num_crops or len(waveform) <= CROP_SAMPLES:
        return waveform
    if not key:
        raise InvalidInput(
            f"{spec.name}: the asset's key determines where its crops begin, and no key was given", "give the key"
        )
    offsets = crop_offsets(key, spec.num_crops, len(waveform))
    return np.concatenate([waveform[offset : offset + CROP_SAMPLES] for offset in offsets])


def encode_crops(
    spec: EncoderSpec, inputs: Sequence[Array], encode: Callable[[Sequence[Array]], list[Array]]
) -> list[Array]:
    """The features of prepared waveforms. Each crop is encoded alone, and an utterance's crops are joined in time."""
    if not spec.num_crops:
        return encode(inputs)
    pieces = [_split(spec, waveform) for waveform in inputs]
    encoded = iter(encode([piece for some in pieces for piece in some]))
    return [_join([next(encoded) for _ in some]) for some in pieces]


def _split(spec: EncoderSpec, waveform: Array) -> list[Array]:
    if len(waveform) <= CROP_SAMPLES:
        return [waveform]
    if len(waveform) != spec.num_crops * CROP_SAMPLES:
        raise InvalidInput(
            f"{len(waveform)} samples are more than one crop of {CROP_SAMPLES} and not {spec.num_crops} crops",
            "cut them by prepare(spec, key)",
        )
    return np.split(waveform, spec.num_crops)


def _join(features: Sequence[Array]) -> Array:
    return features[0] if len(features) == 1 else np.concatenate(features, axis=1)
