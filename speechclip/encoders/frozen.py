"""Frozen means: evaluation mode, no gradient, full fp32, and a guard that refuses anything else."""

from typing import Any

import torch

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
    """The device, with TF32 and autotuning off where it has them: they change the third digit, and from run to run."""
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
