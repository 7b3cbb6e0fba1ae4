"""Padded batches as fairseq computes them, for a comparison with the official evaluation.

Waveforms are padded with zeros to the longest, and the whole model runs on them. So a feature depends on its batch: the
group norm of Base averages over the padding, and fairseq's frame mask leaves in one or two frames that are partly
padding (docs/model.md, "Traps", 3 to 5).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speechclip.encoders.frozen import collect

SAMPLES_PER_FRAME = 320
FrontEnd = Callable[[Tensor], Tensor]
# The arguments are frames (batch, frames, width), and a mask (batch, 1, 1, frames) that is true for the frames which
# may be attended to. The mask is None if there is no padding.
Transformer = Callable[[Tensor, Tensor | None], Iterator[Tensor]]


def pad(
    waveforms: Sequence[Float[Tensor, " samples"]],
) -> tuple[Float[Tensor, "batch samples"], Bool[Tensor, "batch samples"]]:
    """The waveforms padded with zeros to the longest, and a mask that is true for padding."""
    padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def frame_padding(is_padding: Bool[Tensor, "batch samples"], num_frames: int) -> Bool[Tensor, "batch frames"]:
    """True for the frames that are padding, by fairseq's `forward_padding_mask`.

    fairseq cuts the samples into as many equal parts as there are frames. A frame is padding if its whole part is.
    """
    surplus = is_padding.shape[1] % num_frames
    kept = is_padding[:, : is_padding.shape[1] - surplus]
    return kept.reshape(len(kept), num_frames, -1).all(-1)


def official_length(num_samples: int, num_frames: int) -> int:
    """How many frames the official heads read: round(samples / 320) by Python's rule, at most the batch's."""
    return min(round(num_samples / SAMPLES_PER_FRAME), num_frames)


def encode_padded(
    front_end: FrontEnd, waveforms: Sequence[Float[Tensor, " samples"]], transform: Transformer
) -> list[np.ndarray[Any, Any]]:
    """One (layers, frames, width) array for each waveform, cut to the frames that the official heads read."""
    padded, is_padding_sample = pad(waveforms)
    hidden = front_end(padded)
    is_padding = frame_padding(is_padding_sample, hidden.shape[1])
    hidden = hidden.masked_fill(is_padding[..., None], 0)
    mask = ~is_padding[:, None, None, :] if is_padding.any() else None
    states = list(transform(hidden, mask))
    lengths = [official_length(len(waveform), hidden.shape[1]) for waveform in waveforms]
    return collect(states, len(states), lengths, np.float32)
