"""Heads: the trained part, which makes an embedding from an utterance's frames."""

from speechclip.heads.keyword import KeywordConfig, KeywordHead
from speechclip.heads.output import HeadOutput, Keywords
from speechclip.heads.parallel import ParallelConfig, ParallelHead
from speechclip.heads.text_tower import TextTower
from speechclip.heads.weighted_sum import WeightedSum

HeadConfig = ParallelConfig | KeywordConfig
Head = ParallelHead | KeywordHead

__all__ = [
    "Head",
    "HeadConfig",
    "HeadOutput",
    "KeywordConfig",
    "KeywordHead",
    "Keywords",
    "ParallelConfig",
    "ParallelHead",
    "TextTower",
    "WeightedSum",
]
