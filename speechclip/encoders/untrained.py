"""Random weights with a fixed seed for real architectures, to try speed and storage, never quality."""

import hashlib
import math
from typing import Any

import numpy as np
import torch


def fill_untrained(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The same module with random weights, which are equal by bytes on every machine.

    Only uniform random numbers and exactly rounded operations are used. Normal random numbers need a logarithm, whose
    last bit depends on the processor. Norms start as the identity.
    """
    for name, tensor in module.state_dict().items():
        tensor.copy_(torch.from_numpy(_weight(name, tuple(tensor.shape), seed)))
    return module


def _weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    if name.endswith("original0") or (len(shape) < 2 and name.endswith(("weight", "logit_scale"))):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    # A convolution is followed by a rectifier, and gain 6 keeps the variance. Linear layers start as in torch, with a
    # variance of a third.
    gain = 6.0 if len(shape) == 3 else 1.0
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest())))
    uniform = generator.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
    return uniform * np.float32(math.sqrt(gain / fan_in))
