"""All hidden states of a speech transformer behind a convolutional front end, the same alone and in any batch.

This is what HuBERT, wav2vec 2.0 and WavLM have in common, in transformers and in torchaudio. The front end runs on each
utterance alone, because the group norm of the Base models averages over time. It would average over padding too, which
changes states by up to 50 % (docs/model.md, "Traps", 3). Only the transformer runs on padded batches, with a mask.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.batching import batch_by_length
from speechclip.encoders.base import COMPUTE_RULE, Choices, choose_layers, spec_name
from speechclip.encoders.frozen import assert_exact, assert_frozen, collect, freeze
from speechclip.encoders.padded import encode_padded
from speechclip.encoders.threads import one_thread
from speechclip.encoders.weights import weights_digest
from speechclip.encoders.windows import encode_crops, resolve_window
from speechclip.spec import RESAMPLE_RULE, EncoderSpec

RAW_RULE, NORMALISED_RULE = "raw/1", "zero-mean-unit-var-eps1e-5/1"
# Frames in one padded call of the transformer, padding included. On a CPU one utterance at a time is fastest: HuBERT
# Base encodes 5.4 s of audio per CPU-second so, and 3.4 to 3.6 s in padded batches. On a GPU, more frames than these
# are no faster and take more memory (benchmarks/gpu.py). A job's batches of 40 s are smaller.
CPU_FRAMES, GPU_FRAMES = 1, 4_000


class TransformerStates(ABC):
    """All hidden states of a model, (layers, frames, width).

    State 0 is the input of the first transformer block: after the position convolution and, in a post-LN model, after
    its LayerNorm. State i is the output of block i. The final LayerNorm of a pre-LN model is never applied.
    """

    def __init__(self, model: Any, spec: EncoderSpec, encoder_name: str, *, max_frames: int | None = None) -> None:
        self.spec = spec
        self.encoder_name = encoder_name
        self._model: Any = freeze(model)
        self._device = next(model.parameters()).device
        self._max_frames = max_frames or (CPU_FRAMES if self._device.type == "cpu" else GPU_FRAMES)

    @abstractmethod
    def _front_end(self, samples: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames width"]:
        """The convolutions and the projection to the transformer's width."""

    @abstractmethod
    def _states(
        self, hidden: Float[Tensor, "batch frames width"], mask: Bool[Tensor, "batch 1 1 frames"] | None
    ) -> Iterator[Float[Tensor, "batch frames width"]]:
        """The states of `spec.layers` in order. `mask` is true for the frames that may be attended to; None for all."""

    @one_thread()
    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One (layers, frames, width) array for each waveform, in order, within 1e-5 of encoding it alone."""
        assert_frozen(self._model)
        assert_exact(self._device)
        return encode_crops(self.spec, inputs, functools.partial(self._encode, dtype=dtype))

    @one_thread()
    @torch.inference_mode()
    def encode_padded(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """What fairseq makes of these waveforms as one padded batch (see `padded`). To compare with, never to store."""
        assert_frozen(self._model)
        assert_exact(self._device)
        return encode_padded(self._front_end, [self._samples(waveform) for waveform in inputs], self._states)

    def weights(self) -> dict[str, Tensor]:
        """The model's weights, by the names of its library."""
        found: dict[str, Tensor] = self._model.state_dict()
        return found

    def _encode(self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike) -> list[np.ndarray[Any, Any]]:
        features: dict[int, np.ndarray[Any, Any]] = {}
        num_frames = [self.spec.num_frames(len(waveform)) for waveform in inputs]
        for members in batch_by_length(num_frames, self._max_frames):
            fronts = [self._front(inputs[member]) for member in members]
            features |= zip(members, self._transform(fronts, dtype), strict=True)
        return [features[position] for position in range(len(inputs))]

    def _front(self, waveform: np.ndarray[Any, Any]) -> Float[Tensor, "frames width"]:
        """What the transformer gets for one utterance. The statistics of the group norm are its own."""
        return self._front_end(self._samples(waveform)[None])[0]

    def _samples(self, waveform: np.ndarray[Any, Any]) -> Float[Tensor, " samples"]:
        samples = torch.from_numpy(waveform).to(self._device)
        return samples if self.spec.rules["waveform"] == RAW_RULE else normalise_waveform(samples)

    def _transform(self, fronts: Sequence[Tensor], dtype: DTypeLike) -> list[np.ndarray[Any, Any]]:
        """The states of a batch. Its padding is zero before the position convolution, and no frame attends to it."""
        lengths = [len(front) for front in fronts]
        hidden = torch.nn.utils.rnn.pad_sequence(list(fronts), batch_first=True)
        mask = None
        if min(lengths) < max(lengths):
            frames = torch.arange(max(lengths), device=self._device)
            mask = (frames < torch.tensor(lengths, device=self._device)[:, None])[:, None, None, :]
        return collect(self._states(hidden, mask), len(self.spec.layers), lengths, dtype)


def normalise_waveform(samples: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """(x - mean) / sqrt(variance + 1e-5) over one utterance, as fairseq computes it.

    transformers adds 1e-7 instead, which changes a quiet recording by 86 %.
    """
    return torch.nn.functional.layer_norm(samples, samples.shape, eps=1e-5)


def states_spec(
    model: Any,
    *,
    encoder_name: str,
    name: str,
    family: str,
    is_trained: bool,
    is_normalised: bool,
    width: int,
    num_layers: int,
    kernels: Sequence[int],
    strides: Sequence[int],
    architecture: dict[str, Any],
    choices: Choices,
) -> EncoderSpec:
    """The spec of such a model. `kernels` and `strides` are those of its front end's convolutions."""
    hops = [math.prod(strides[:depth]) for depth in range(len(strides) + 1)]
    reach = sum((kernel - 1) * hop for kernel, hop in zip(kernels, hops, strict=False))
    return EncoderSpec(
        name=spec_name(name, is_trained=is_trained),
        family=family,
        modality="speech",
        weights=weights_digest(model.state_dict()),
        is_trained=is_trained,
        width=width,
        layers=choose_layers(choices.layers, num_layers + 1, encoder_name),
        hop_samples=hops[-1],
        window_samples=reach + 1,
        codec=choices.codec,
        rules={
            "resample": RESAMPLE_RULE,
            "waveform": NORMALISED_RULE if is_normalised else RAW_RULE,
            "states": "pre-final-ln/1",
            "window": resolve_window(choices.window, encoder_name),
            "longest": "120s/1",
            "compute": COMPUTE_RULE,
        },
        architecture=architecture,
    )
