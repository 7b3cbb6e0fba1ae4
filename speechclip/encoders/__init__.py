"""Frozen encoders. `load_encoder` gives one by its name, and `prepare` gives the cheap step before it.

Importing this package does not import torch.
"""

from speechclip.encoders.base import Encoder
from speechclip.encoders.load import load_encoder
from speechclip.encoders.prepare import prepare

__all__ = ["Encoder", "load_encoder", "prepare"]
