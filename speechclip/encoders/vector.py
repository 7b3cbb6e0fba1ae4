"""One vector for each picture or text, from CLIP's towers and from timm's models."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike

from speechclip.encoders.frozen import assert_exact, assert_frozen
from speechclip.encoders.threads import one_thread
from speechclip.spec import EncoderSpec

BATCH = 64


class VectorEncoder:
    """A frozen model that makes vectors (width,).

    `forward` gets a stacked batch of prepared inputs and returns the model's vectors (batch, width).
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], Any], model: torch.nn.Module, spec: EncoderSpec, encoder_name: str
    ) -> None:
        self.spec = spec
        self.encoder_name = encoder_name
        self._forward, self._model = forward, model
        self._device = next(model.parameters()).device

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's weights, by the names of its library."""
        found: dict[str, torch.Tensor] = self._model.state_dict()
        return found

    @one_thread()
    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One (width,) array for each prepared picture or text, in order, within 1e-5 of encoding it alone."""
        assert_frozen(self._model)
        assert_exact(self._device)
        vectors: list[np.ndarray[Any, Any]] = []
        for first in range(0, len(inputs), BATCH):
            batch = torch.from_numpy(np.stack(inputs[first : first + BATCH])).to(self._device)
            with np.errstate(over="ignore"):
                vectors.extend(self._forward(batch).cpu().numpy().astype(dtype))
        return vectors
