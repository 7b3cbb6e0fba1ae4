"""What every encoder can do, and what a caller may choose about one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from speechclip.errors import InvalidInput
from speechclip.records import Modality
from speechclip.spec import CodecName, EncoderSpec, Window

# Encoders compute in float32: no TF32 and no autocast.
COMPUTE_RULE = "fp32/1"


@dataclass(frozen=True)
class Choices:
    """What a caller chooses besides the encoder's name.

    `layers` are the hidden states to keep; None keeps all. `window` is ``full`` or ``crops=K``. `device` is a torch
    device or ``auto``; it is no part of the spec.
    """

    modality: Modality
    layers: Sequence[int] | None = None
    codec: CodecName = "fp16"
    device: str = "cpu"
    window: Window = "full"


class Encoder(Protocol):
    """A frozen model, or a rule without weights, that makes features."""

    spec: EncoderSpec
    encoder_name: str

    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One feature for each prepared input, in order: (layers, frames, width) or (width,).

        A feature does not depend on the other inputs. Alone or in any batch, its numbers agree within 1e-5 of the
        largest number in their state. The encoder computes in float32 and then rounds to `dtype`. A number beyond the
        range of `dtype` becomes infinity.
        """
        ...


def clean_name(text: str) -> str:
    """`text` in lower case, with only the letters that the name of a spec may have: a-z, 0-9, dot and hyphen."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def choose_layers(layers: Sequence[int] | None, num_states: int, encoder_name: str) -> tuple[int, ...]:
    """The hidden states to keep, in ascending order: all of them if `layers` is None.

    `InvalidInput` if `layers` is empty, names a state twice or names one that the encoder does not have.
    """
    if layers is None:
        return tuple(range(num_states))
    if not layers or len(set(layers)) != len(layers) or not set(layers) <= set(range(num_states)):
        raise InvalidInput(
            f"{encoder_name} has the states 0 to {num_states - 1}; the layers {list(layers)} do not fit",
            "name some of its states, each once",
        )
    return tuple(sorted(layers))


def spec_name(name: str, *, is_trained: bool) -> str:
    """`name` as a spec's name, with "untrained" in it if the weights are random."""
    name = clean_name(name)
    return name if is_trained or "untrained" in name else f"{name}-untrained"
