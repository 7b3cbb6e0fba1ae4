"""WavLM's layers in transformers: HuBERT's layers with a relative position bias.

The first layer computes the bias, and every later layer gates it.
"""

import warnings
from typing import Any

from torch import Tensor

# The settings of WavLM's config that change a state, besides HuBERT's.
ARCHITECTURE = ["num_buckets", "max_bucket_distance"]


def run_layer(layer: Any, hidden: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The layer's output, and the position bias for the next layer. The first layer gets `bias` None.

    `mask` is (batch, 1, 1, frames), true for the frames that may be attended to.
    """
    keys = None if mask is None else mask[:, 0, 0]
    with warnings.catch_warnings():
        # The library passes a boolean padding mask beside a float bias. torch warns, and computes the right result.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
        hidden, bias = layer(hidden, attention_mask=keys, position_bias=bias)
    assert bias is not None
    return hidden, bias
