"""Heads: the trained part, which makes an embedding from an utterance's frames."""

from speechclip.heads.parallel import ParallelConfig, ParallelHead
from speechclip.heads.weighted_sum import WeightedSum

__all__ = ["ParallelConfig", "ParallelHead", "WeightedSum"]
