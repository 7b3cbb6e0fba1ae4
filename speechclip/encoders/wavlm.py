"""WavLM's layers: HuBERT's, with a relative position bias that the first layer makes and every later one gates."""

import warnings
from typing import Any

from torch import Tensor

# What of WavLM's config changes a state beside HuBERT's.
ARCHITECTURE = ["num_buckets", "max_bucket_distance"]


def run_layer(layer: Any, hidden: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The layer's output and the position bias for the next layer; the first is given none.

    `mask` is (batch, 1, 1, frames), true where a frame may be attended to.
    """
    keys = None if mask is None else mask[:, 0, 0]
    with warnings.catch_warnings():
        # The library gives torch a boolean padding mask beside the float bias; torch warns and does the right thing.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
        hidden, bias = layer(hidden, attention_mask=keys, position_bias=bias)
    assert bias is not None
    return hidden, bias
