"""Windows: what of an utterance is encoded at once, the whole of it or crops of 6.4 s as the official training cuts.

An utterance of 102,400 samples at 16 kHz or fewer is encoded whole by either rule.
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
    """The spec's rule for `full` or `crops=K`; anything else is `InvalidInput`."""
    if window == "full":
        return FULL_RULE
    found = re.fullmatch(r"crops=([1-9]\d?)", window)
    if found is None or int(found[1]) > MAX_CROPS:
        raise InvalidInput(f"{encoder_name}: window is {window!r}; write full, or crops=K with K from 1 to {MAX_CROPS}")
    return crops_rule(int(found[1]))


def crop_offsets(key: str, num_crops: int, num_samples: int) -> list[int]:
    """Where each crop of that asset begins: of its key, K and the crop's number alone, below L - 102400.

    The upper end is exclusive as in the official `randint`, so the last possible offset never occurs (docs/model.md,
    "Preprocessing").
    """
    digests = [hashlib.sha256(f"{key} {num_crops} {number}".encode()).digest() for number in range(num_crops)]
    return [int.from_bytes(digest[:8], "little") % (num_samples - CROP_SAMPLES) for digest in digests]


def cut_crops(spec: EncoderSpec, key: str, waveform: Array) -> Array:
    """The spec's crops of a waveform, one after the other; unchanged where the window is `full` or nothing is to cut.

    Crops without an asset's `key` are `InvalidInput`: their offsets would be any.
    """
    if not spec.num_crops or len(waveform) <= CROP_SAMPLES:
        return waveform
    if not key:
        raise InvalidInput(f"{spec.name}: crops begin where the asset's key says, and none is given; name the asset")
    offsets = crop_offsets(key, spec.num_crops, len(waveform))
    return np.concatenate([waveform[offset : offset + CROP_SAMPLES] for offset in offsets])


def encode_crops(
    spec: EncoderSpec, inputs: Sequence[Array], encode: Callable[[Sequence[Array]], list[Array]]
) -> list[Array]:
    """The features of prepared waveforms, each crop encoded by itself and an utterance's crops joined in time."""
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
            f"{len(waveform)} samples are neither short nor {spec.num_crops} crops of {CROP_SAMPLES}; "
            "cut them by prepare(spec, key)"
        )
    return np.split(waveform, spec.num_crops)


def _join(features: Sequence[Array]) -> Array:
    return features[0] if len(features) == 1 else np.concatenate(features, axis=1)
