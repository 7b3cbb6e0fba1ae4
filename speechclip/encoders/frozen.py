"""Frozen models: in evaluation mode, without gradients and in full fp32. The guards refuse anything else."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.errors import InvalidInput


def freeze(module: torch.nn.Module) -> Any:
    """The same module, set to evaluation mode and without gradients."""
    return module.eval().requires_grad_(False)


def assert_frozen(module: torch.nn.Module) -> None:
    """`InvalidInput` if the module is in training mode or a weight requires a gradient.

    Dropout, masks or a training step could then change a feature from one call to the next.
    """
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if training:
        raise InvalidInput(f"{training[0]} is in training mode, so features would be random", "call freeze(module)")
    if learning:
        raise InvalidInput(f"{learning[0]} requires a gradient, so weights could change", "call freeze(module)")


def use_device(device: str) -> torch.device:
    """The torch device of that name. `auto` is a GPU if torch sees one, else the CPU.

    For a GPU, TF32 and autotuning are switched off. TF32 changes the third digit of a feature, and autotuning changes
    features from run to run.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidInput(f"device {device!r} was asked for, but torch sees no GPU", "ask for 'cpu'")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return found


def assert_exact(device: torch.device) -> None:
    """`InvalidInput` if TF32 or autocast has been switched on since, against the rule ``compute=fp32/1``."""
    is_rounded = device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    if is_rounded or torch.is_autocast_enabled(device.type):
        raise InvalidInput(f"TF32 or autocast is on for {device.type}, but the spec says fp32", "switch it off")


def collect(
    states: Iterable[Float[Tensor, "batch frames width"]], count: int, lengths: Sequence[int], dtype: DTypeLike
) -> list[np.ndarray[Any, Any]]:
    """For each member of a batch its `count` states without padding, (states, length, width), in the host's memory.

    They are rounded and cut on the device on which they were computed. So a GPU sends half the bytes to its host.
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
