"""Frozen means: evaluation mode, no gradient, full fp32, and a guard that refuses anything else."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.errors import InvalidInput


def freeze(module: torch.nn.Module) -> Any:
    """The same module in evaluation mode and without gradients."""
    return module.eval().requires_grad_(False)


def assert_frozen(module: torch.nn.Module) -> None:
    """Refuse a module that could give another feature the next time: dropout, masks or training would be on."""
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if training:
        raise InvalidInput(f"{training[0]} is in training mode, so features would be random; call freeze(module) first")
    if learning:
        raise InvalidInput(f"{learning[0]} requires a gradient, so weights could change; call freeze(module) first")


def use_device(device: str) -> torch.device:
    """The device, with TF32 and autotuning off where it has them: they change the third digit, and from run to run.

    `auto` is a GPU where torch sees one, else the CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidInput(f"device {device!r} asked for, but torch sees no GPU here; ask for 'cpu'")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return found


def assert_exact(device: torch.device) -> None:
    """Refuse to compute where a flag has since allowed less than fp32 (rule ``compute=fp32``)."""
    is_rounded = device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    if is_rounded or torch.is_autocast_enabled(device.type):
        raise InvalidInput(f"TF32 or autocast is on for {device.type}, but the spec says fp32; switch it off")


def collect(
    states: Iterable[Float[Tensor, "batch frames width"]], count: int, lengths: Sequence[int], dtype: DTypeLike
) -> list[np.ndarray[Any, Any]]:
    """The `count` states of each member of a batch without its padding, (states, length, width), in the host's memory.

    They are rounded and cut where they were computed: so a GPU sends half the bytes, and its host only stores them.
    """
    found: Tensor | None = None
    place = -1
    for place, state in enumerate(states):
        if found is None:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            found = torch.empty(len(state), count, *state.shape[1:], dtype=kind, device=state.device)
        found[:, place] = state
    assert found is not None
    assert place == count - 1, f"{place + 1} states, not {count}"
    return [member[:, :length].contiguous().cpu().numpy() for member, length in zip(found, lengths, strict=True)]
