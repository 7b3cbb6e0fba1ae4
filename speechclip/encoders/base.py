"""What every encoder is, and the words in which one is asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike

from speechclip.errors import InvalidInput
from speechclip.spec import EncoderSpec

Family = Literal["toy", "hubert", "wav2vec2", "wavlm", "whisper", "clip", "timm"]
GRAMMAR = """\
    toy                                     numpy only, no weights: speech, image and text
    hubert:<hub id or folder>[@<revision>]  speech; also wav2vec2: and wavlm:
    hubert:untrained-base                   true architectures with seeded weights: untrained-base, untrained-large,
                                            untrained-tiny, untrained-tiny-large
    whisper:<hub id or folder>[@<revision>] speech; or whisper:untrained-tiny
    clip:<model>/<tag or checkpoint file>   image and text: clip:ViT-B-32/openai, clip:ViT-B-32//data/clip.safetensors
    clip:untrained-ViT-B-32                 or clip:untrained-tiny
    timm:<model>@<folder or safetensors>    image"""

COMPUTE_RULE = "fp32/1"


class Encoder(Protocol):
    """A frozen model, or a rule without weights, that makes features."""

    spec: EncoderSpec
    encoder_name: str

    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One feature per prepared input, in order: (layers, frames, width) or (width,).

        A feature does not depend on its batch mates: alone or in any batch its values agree within 1e-5 of
        the largest in their state. It is computed in float32 and then rounded to `dtype`, to infinity beyond its range.
        """
        ...


@dataclass(frozen=True)
class EncoderName:
    """A parsed SPEC string: the family, and the rest by the family's own grammar."""

    family: Family
    rest: str

    @classmethod
    def parse(cls, text: str) -> "EncoderName":
        """The parts of a SPEC string; anything outside the grammar is `InvalidInput`, with the grammar."""
        family, colon, rest = text.partition(":")
        match family:
            case "toy" if not colon:
                return cls("toy", "")
            case "hubert" | "wav2vec2" | "wavlm" | "whisper" | "clip" | "timm" if rest:
                return cls(family, rest)
        raise InvalidInput(f"{text!r} names no encoder; write one of\n{GRAMMAR}")

    def __str__(self) -> str:
        return f"{self.family}:{self.rest}" if self.rest else self.family


def clean_name(text: str) -> str:
    """`text` in the letters that a feature set's name may hold: a-z, 0-9, dot and hyphen."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def choose_layers(layers: Sequence[int] | None, num_states: int, encoder_name: str) -> tuple[int, ...]:
    """The hidden states to keep, ascending: all by default, else those asked for, which must exist."""
    if layers is None:
        return tuple(range(num_states))
    if not layers or len(set(layers)) != len(layers) or not set(layers) <= set(range(num_states)):
        raise InvalidInput(
            f"{encoder_name} has the states 0 to {num_states - 1}, not all of {list(layers)}; name each once"
        )
    return tuple(sorted(layers))
