"""Frozen encoders: `load_encoder` for the weights, `prepare` for the cheap step before them. No torch until called."""

from speechclip.encoders.base import Encoder
from speechclip.encoders.load import load_encoder
from speechclip.encoders.prepare import prepare

__all__ = ["Encoder", "load_encoder", "prepare"]
