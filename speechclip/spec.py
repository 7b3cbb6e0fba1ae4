"""The encoder spec: every choice that can change a feature's value. Its hash is the fingerprint of a feature set."""

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
# A window as the command line takes it: `full` or `crops=K`.
Window = str
# Every waveform has this rate when an encoder gets it. `media/decode.py` resamples with soxr at quality HQ.
SAMPLE_RATE = 16_000
RESAMPLE_RULE = "soxr-hq/1"
# 6.4 s at 16 kHz: the official random crop of training (docs/model.md, "Preprocessing").
CROP_SAMPLES = 102_400
CROP_SECONDS = CROP_SAMPLES / SAMPLE_RATE
_CROPS_RULE = re.compile(r"crops-(\d+)-6\.4s/1")


class EncoderSpec(Record, frozen=True):
    """Everything about an encoder that can change a feature's value. It names no version of a library.

    `weights` is a digest of the weights. `layers` are the hidden states that are stored, in storage order; empty for
    vectors. `hop_samples` and `window_samples` are the step and the width of a frame in samples at 16 kHz. `rules` are
    choices with our own version numbers, such as ``resample=soxr-hq/1`` (see docs/encoders.md). `architecture` is the
    part of the model's own configuration that can change values.
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
        """True if a feature is (layers, frames, width), false if it is a vector (width,)."""
        return bool(self.layers)

    @property
    def is_of_head(self) -> bool:
        """True for the embeddings that a trained head made of another feature set, not of a source."""
        return self.family == "head"

    @property
    def num_crops(self) -> int:
        """How many crops of 6.4 s are encoded of a longer utterance. 0 if utterances are encoded whole."""
        found = _CROPS_RULE.fullmatch(self.rules.get("window", ""))
        return int(found[1]) if found else 0

    @property
    def window(self) -> Window:
        """The window as the command line takes it: `full` or `crops=K`."""
        return f"crops={self.num_crops}" if self.num_crops else "full"

    @property
    def frames_per_crop(self) -> int:
        """How many frames a crop has: 319 for HuBERT. Crop i is then the frames [319 i, 319 (i + 1))."""
        return (CROP_SAMPLES - self.window_samples) // self.hop_samples + 1

    def is_same_but_window(self, other: "EncoderSpec") -> bool:
        """Whether a head that was trained on these features can read the others: only window and codec may differ."""
        return self._without_window() == other._without_window()

    def num_frames(self, num_samples: int) -> int:
        """How many frames `num_samples` at 16 kHz give: ``(L - 400) // 320 + 1`` for the convolutions of HuBERT."""
        if self.num_crops and num_samples > CROP_SAMPLES:
            return self.num_crops * self.frames_per_crop
        return max(0, (num_samples - self.window_samples) // self.hop_samples + 1)

    def frame_times(self, num_frames: int) -> Float[np.ndarray, "frames 2"]:
        """The start and the end, in seconds, of the sound from which the convolutions compute each frame.

        For HuBERT, frame i lasts from 0.02 i to 0.02 i + 0.025. If an utterance was cut into crops, the times count
        from the start of the crop that holds the frame.
        """
        numbers = np.arange(num_frames)
        if self.num_crops and num_frames > self.frames_per_crop:
            numbers %= self.frames_per_crop
        starts = numbers * self.hop_samples / SAMPLE_RATE
        return np.stack([starts, starts + self.window_samples / SAMPLE_RATE], axis=1)

    def encoded_seconds(self, seconds: float) -> float:
        """How many seconds of an utterance of that length are encoded."""
        return self.num_crops * CROP_SECONDS if self.num_crops and seconds > CROP_SECONDS else seconds

    def _without_window(self) -> "EncoderSpec":
        rules = {name: rule for name, rule in self.rules.items() if name != "window"}
        return msgspec.structs.replace(self, rules=rules, codec="fp16")


def crops_rule(num_crops: int) -> str:
    """The rule ``window`` for so many crops."""
    return f"crops-{num_crops}-6.4s/1"
