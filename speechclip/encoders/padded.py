"""Padded batches with fairseq's semantics: what the official evaluation computes, which depends on the batch.

Waveforms are padded by zeros to the longest and the whole HuBERT runs on them: Base's group norm averages over the
padding, and fairseq's frame mask leaves in one or two frames made partly of it (docs/model.md, "Traps", 3 to 5).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speechclip.encoders.frozen import collect

SAMPLES_PER_FRAME = 320
# Frames (batch, frames, width) and the keys that may be attended to (batch, 1, 1, frames), None where all may.
Transformer = Callable[[Tensor, Tensor | None], Iterator[Tensor]]


def pad(
    waveforms: Sequence[Float[Tensor, " samples"]],
) -> tuple[Float[Tensor, "batch samples"], Bool[Tensor, "batch samples"]]:
    """The waveforms with zeros to the longest, and which samples are padding."""
    padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def frame_padding(is_padding: Bool[Tensor, "batch samples"], num_frames: int) -> Bool[Tensor, "batch frames"]:
    """fairseq's `forward_padding_mask`: the samples in as many equal parts as frames, and those all padding."""
    surplus = is_padding.shape[1] % num_frames
    kept = is_padding[:, : is_padding.shape[1] - surplus]
    return kept.reshape(len(kept), num_frames, -1).all(-1)


def official_length(num_samples: int, num_frames: int) -> int:
    """How many frames the official heads look at: round(L / 320) by Python's rule, at most those of the batch."""
    return min(round(num_samples / SAMPLES_PER_FRAME), num_frames)


def encode_padded(
    model: Any, waveforms: Sequence[Float[Tensor, " samples"]], transform: Transformer
) -> list[np.ndarray[Any, Any]]:
    """For each waveform (layers, frames, width) of the batch's run, cut to the frames that the official heads see."""
    padded, is_padding = pad(waveforms)
    hidden = model.feature_extractor(padded).transpose(1, 2)
    hidden = model.feature_projection(hidden)
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    is_padding = frame_padding(is_padding, hidden.shape[1])
    hidden = hidden.masked_fill(is_padding[..., None], 0)
    mask = ~is_padding[:, None, None, :] if is_padding.any() else None
    states = list(transform(hidden, mask))
    lengths = [official_length(len(waveform), hidden.shape[1]) for waveform in waveforms]
    return collect(states, len(states), lengths, np.float32)
