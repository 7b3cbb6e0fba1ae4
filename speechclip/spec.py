"""The encoder spec: every choice that can change a feature's value, and nothing else. Its hash is the fingerprint."""

import hashlib
import re
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float

from speechclip.errors import InvalidInput
from speechclip.records import Modality, Record, to_json

# How numbers are stored: `store/codec.py`.
CodecName = Literal["fp16", "fp32"]
# A window in the words of the command line: `full`, or `crops=K`.
Window = str
# Every waveform has this rate when an encoder gets it. `media/decode.py` resamples with soxr at quality HQ.
SAMPLE_RATE = 16_000
RESAMPLE_RULE = "soxr-hq/1"
# 6.4 s at 16 kHz: the official random crop of training (docs/model.md, "Preprocessing").
CROP_SAMPLES = 102_400
CROP_SECONDS = CROP_SAMPLES / SAMPLE_RATE
_CROPS_RULE = re.compile(r"crops-(\d+)-6\.4s/1")


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
    codec: CodecName = "fp16"
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
    def num_crops(self) -> int:
        """How many crops of 6.4 s stand for a longer utterance; 0 where utterances are encoded whole."""
        found = _CROPS_RULE.fullmatch(self.rules.get("window", ""))
        return int(found[1]) if found else 0

    @property
    def window(self) -> Window:
        """The window in the words that asked for it: `full` or `crops=K`."""
        return f"crops={self.num_crops}" if self.num_crops else "full"

    @property
    def frames_per_crop(self) -> int:
        """The frames of each crop, 319 for HuBERT; crop i is frames [i * 319, (i + 1) * 319)."""
        return (CROP_SAMPLES - self.window_samples) // self.hop_samples + 1

    def is_same_but_window(self, other: "EncoderSpec") -> bool:
        """Whether a head that reads these features can read the others: only window and codec may differ."""
        return self._without_window() == other._without_window()

    def num_frames(self, num_samples: int) -> int:
        """How many frames come of `num_samples` at 16 kHz: for HuBERT ``(L - 400) // 320 + 1`` (its convolutions)."""
        if self.num_crops and num_samples > CROP_SAMPLES:
            return self.num_crops * self.frames_per_crop
        return max(0, (num_samples - self.window_samples) // self.hop_samples + 1)

    def frame_times(self, num_frames: int) -> Float[np.ndarray, "frames 2"]:
        """The start and the end, in seconds, of the sound that each frame is computed from by the convolutions.

        HuBERT: frame i is from 0.02 i to 0.02 i + 0.025. Where an utterance was cut into crops, the times count from
        the start of the crop that holds the frame.
        """
        numbers = np.arange(num_frames)
        if self.num_crops and num_frames > self.frames_per_crop:
            numbers %= self.frames_per_crop
        starts = numbers * self.hop_samples / 16_000
        return np.stack([starts, starts + self.window_samples / 16_000], axis=1)

    def encoded_seconds(self, seconds: float) -> float:
        """Seconds of speech that pass through the encoder for an utterance of that length."""
        return self.num_crops * CROP_SECONDS if self.num_crops and seconds > CROP_SECONDS else seconds

    def _without_window(self) -> "EncoderSpec":
        rules = {name: rule for name, rule in self.rules.items() if name != "window"}
        return msgspec.structs.replace(self, rules=rules, codec="fp16")


def crops_rule(num_crops: int) -> str:
    """The rule ``window`` of so many crops."""
    return f"crops-{num_crops}-6.4s/1"
