"""The heads: the small trained networks that make an embedding from the frames of an utterance.

    head = ParallelConfig(
        num_layers=13, width=768, image_width=512, embedding_width=512, feed_forward_width=3072
    ).build()
    output = head(frames, lengths)      # frames (batch, 13, frames, 768), lengths (batch)
    output.embedding                    # (batch, 512), each row of length one

docs/heads.md shows which head to choose, docs/model.md has the mathematics.
"""

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
