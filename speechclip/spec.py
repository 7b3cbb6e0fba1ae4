"""The encoder spec: every choice that can change a feature's value, and nothing else. Its hash is the fingerprint."""

import hashlib
from typing import Any, Literal

import numpy as np

from speechclip.errors import InvalidInput
from speechclip.records import Modality, Record, to_json

Codec = Literal["fp16", "fp32"]
CODEC_DTYPES: dict[Codec, str] = {"fp16": "<f2", "fp32": "<f4"}


class EncoderSpec(Record, frozen=True):
    """A frozen encoder, resolved: weights by digest, rules by our own version numbers, never a library version.

    `layers` are the hidden states kept, in storage order; empty for vectors. `architecture` holds the model's own
    configuration as far as it changes values. `rules` are such as ``resample=soxr-hq/1`` (see docs/encoders.md).
    """

    name: str
    family: str
    modality: Modality
    weights: str
    is_trained: bool
    width: int
    layers: tuple[int, ...] = ()
    hop_samples: int = 0
    window_samples: int = 0
    codec: Codec = "fp16"
    rules: dict[str, str] = {}
    architecture: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.is_trained and "untrained" not in self.name:
            raise InvalidInput(f"{self.name}: an encoder without trained weights must say 'untrained' in its name")

    @property
    def fingerprint(self) -> str:
        """The spec's name and the first 12 hex digits of its sha256, as in ``hubert-base-ls960-3f2a91c04b7d``."""
        return f"{self.name}-{hashlib.sha256(to_json(self)).hexdigest()[:12]}"

    @property
    def is_frames(self) -> bool:
        """True for (layers, frames, width) per asset, false for one vector per asset."""
        return bool(self.layers)

    @property
    def is_of_head(self) -> bool:
        """True for the embeddings that a trained head made of another feature set, not of a source."""
        return self.family == "head"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        return np.dtype(CODEC_DTYPES[self.codec])

    def num_frames(self, num_samples: int) -> int:
        """How many frames come of `num_samples` at 16 kHz: for HuBERT ``(L - 400) // 320 + 1`` (its convolutions)."""
        return max(0, (num_samples - self.window_samples) // self.hop_samples + 1)

    def num_bytes(self, seconds: float) -> int:
        """Stored bytes of one asset of that length, without the shard's headers."""
        frames = self.num_frames(round(seconds * 16_000)) * len(self.layers) if self.is_frames else 1
        return frames * self.width * self.dtype.itemsize
