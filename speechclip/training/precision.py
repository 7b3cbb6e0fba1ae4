"""The precision of a training step: 16 bits on a GPU if the recipe says so, always fp32 on a CPU."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SCALE, _STREAK = "precision.scale", "precision.streak"


class Precision:
    """Runs the forward pass in the recipe's precision and the update by the optimizer.

    For fp16 the loss is scaled up so that small gradients do not become zero. A step whose gradients overflow is
    skipped. All workers have the same averaged gradients, so they skip the same steps.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        is_mixed = name in _DTYPES and device.type == "cuda"
        if name in _DTYPES and not is_mixed:
            logger.info("the recipe's precision is %s, but a %s computes in fp32", name, device.type)
        self._device, self._dtype = device, _DTYPES[name] if is_mixed else None
        self._scaler = GradScaler(device.type, enabled=self._dtype is torch.float16)

    @property
    def is_scaled(self) -> bool:
        """Whether the loss is scaled. Then gradients that overflow are normal: the step is skipped."""
        return self._scaler.is_enabled()

    def autocast(self) -> torch.autocast:
        """The context manager for the forward pass."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss multiplied by the current scale. Call `backward` on it."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def step(self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], most: float) -> float:
        """Clip the gradients to the norm `most` and update the parameters. The result is the norm before clipping."""
        self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        self._scaler.step(optimizer)
        self._scaler.update()
        return norm.item()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the scale and how long it has not overflowed. Empty if nothing is scaled."""
        if not self.is_scaled:
            return {}
        kept = self._scaler.state_dict()
        return {_SCALE: torch.tensor(kept["scale"]), _STREAK: torch.tensor(kept["_growth_tracker"])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        if self.is_scaled and _SCALE in state:
            kept = {"scale": state[_SCALE].item(), "_growth_tracker": int(state[_STREAK].item())}
            self._scaler.load_state_dict(self._scaler.state_dict() | kept)
