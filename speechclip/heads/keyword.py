"""Heads with keywords: they hear words of CLIP's vocabulary, and CLIP's text encoder reads these words.

Sources: docs/model.md, "Cascaded head" and docs/model.md, "CIF and hybrid heads".

    frames (batch, layers, frames, width)
      weighted sum of the layers                  (batch, frames, width)
      attention, fixed: the CLS rows              (batch, keywords, width)
      attention, CIF: sums of frames              (batch, slots, width)
      linear projection and BatchNorm: z_k        (batch, slots, keyword width)
      nearest token of the vocabulary: h_k        (batch, slots, keyword width)
      CLIP's text encoder, length one             (batch, embedding)

A hybrid head has one more CLS row, which becomes a second, parallel embedding.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.errors import InvalidInput
from speechclip.heads.attention import AttentionBlock, TransformerBlock
from speechclip.heads.batch_norm import KeywordBatchNorm, KeywordNorm, NormStart
from speechclip.heads.cif import Fired, IntegrateAndFire
from speechclip.heads.output import HeadOutput, Keywords
from speechclip.heads.projection import build_projection
from speechclip.heads.quantizer import Quantizer
from speechclip.heads.text_tower import TextTower
from speechclip.heads.together import Alone, Together
from speechclip.heads.weighted_sum import Normalization, WeightedSum
from speechclip.records import Record

Segmentation = Literal["fixed", "cif"]
Block = Literal["attention", "transformer"]
# The first dropout site of CIF and of each projection. The attention block has the sites before them.
_FIRING, _KEYWORDS, _PARALLEL = 4, 6, 16


class KeywordConfig(Record, frozen=True, tag="keyword"):
    """The sizes and choices of a head with keywords.

    | head | `has_parallel` | `segmentation` |
    |---|---|---|
    | cascaded | no | `fixed` |
    | hybrid | yes | `fixed` |
    | cascaded-plus | no | `cif` |
    | hybrid-plus | yes | `cif` |

    - `num_layers` and `width` are those of the frames.
    - `image_width` is the width of CLIP's joint space, and so of the embeddings. `keyword_width` is the width of CLIP's
      token embeddings. `vocabulary_size` counts the tokens to choose from.
    - `num_keywords` is the number of keywords of a head with `fixed` segmentation.
    - `block`, `num_heads` and `feed_forward_width` describe the attention block.
    - `projection` has the hidden widths between attention and keywords: () for one linear layer, (1024,) for the two
      layers of the released Large models. `parallel_projection` is the same for the parallel embedding.
    - `batch_norm` and `norm_start` are explained in `batch_norm.KeywordBatchNorm`. With CIF it is always `same`.
    - `quantizer_temperature` is that of the softmax that gives the choice of tokens its gradient.
    - `frames_per_keyword` and `max_keywords` are explained in `cif.IntegrateAndFire`. CIF scales its weights in the
      first `rescale_steps` steps of a training.
    """

    num_layers: int
    width: int
    image_width: int
    keyword_width: int
    vocabulary_size: int
    has_parallel: bool = False
    segmentation: Segmentation = "fixed"
    num_keywords: int = 8
    num_heads: int = 1
    block: Block = "attention"
    feed_forward_width: int = 0
    projection: tuple[int, ...] = ()
    dropout: float = 0.1
    normalize: Normalization = "none"
    batch_norm: KeywordNorm = "each"
    norm_start: NormStart = "literal"
    quantizer_temperature: float = 0.1
    is_quantizer_learnable: bool = False
    max_keywords: int = 75
    frames_per_keyword: int = 20
    rescale_steps: int = 5_000
    parallel_projection: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise InvalidInput(
                f"{self.num_heads} attention heads do not divide the width {self.width}", "choose another num_heads"
            )
        if self.block == "transformer" and (self.segmentation == "cif" or not self.feed_forward_width):
            raise InvalidInput(
                f"a transformer block needs feed_forward_width and fixed keywords, not {self.feed_forward_width} and "
                f"{self.segmentation!r}",
                "set these, or set block to 'attention'",
            )

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings, which is that of CLIP's joint space."""
        return self.image_width

    def build(self, tower: TextTower | None = None) -> "KeywordHead":
        """A new head with this text tower. torch's random generator gives its weights.

        Raises `InvalidInput` if the tower has other sizes.
        """
        assert tower is not None
        found = (*tower.embeddings.shape, tower.joint_width)
        expected = (self.vocabulary_size, self.keyword_width, self.image_width)
        if found != expected:
            raise InvalidInput(
                f"the text tower has {found[0]} tokens of width {found[1]} and gives width {found[2]}, the head is for "
                f"{expected[0]}, {expected[1]} and {expected[2]}",
                "use the CLIP and the vocabulary that the head was made for",
            )
        most = self.max_keywords if self.segmentation == "cif" else self.num_keywords
        if most > tower.most_keywords:
            raise InvalidInput(
                f"the head may have {most} keywords, but the text tower takes {tower.most_keywords}",
                "choose fewer keywords",
            )
        return KeywordHead(self, tower)


class KeywordHead(nn.Module):
    """Makes keywords from the frames of each utterance, and an embedding from the keywords.

    Its parameters have the official names. `cls` has the CLS rows: one for each keyword, or with CIF one for the
    parallel embedding. A hybrid head has `parallel_cls` and `cascaded_cls` instead. The weights of the text tower are
    neither trained nor stored with the head.
    """

    def __init__(self, config: KeywordConfig, tower: TextTower) -> None:
        super().__init__()
        self.config, self.tower = config, tower
        self.together: Together = Alone()
        width, rate = config.width, config.dropout
        self.weighted_sum = WeightedSum(config.num_layers, config.normalize)
        for name, count in self._cls_rows().items():
            self.register_parameter(name, nn.Parameter(torch.randn(1, count, width)))
        self.self_att: AttentionBlock | TransformerBlock = (
            AttentionBlock(width, config.num_heads, rate)
            if config.block == "attention"
            else TransformerBlock(width, config.num_heads, config.feed_forward_width, rate)
        )
        if config.segmentation == "cif":
            self.downsampling = IntegrateAndFire(
                width, frames_per_keyword=config.frames_per_keyword, max_keywords=config.max_keywords
            )
        self.linear_proj = build_projection((width, *config.projection, config.keyword_width), rate)
        if config.has_parallel:
            self.parallel_proj = build_projection((width, *config.parallel_projection, config.image_width), rate)
        embeddings = tower.embeddings
        self.bn_layer = KeywordBatchNorm(
            "same" if config.segmentation == "cif" else config.batch_norm,
            config.num_keywords,
            embeddings.std(0),
            embeddings.mean(0),
            config.norm_start,
        )
        self.vector_quantizer = Quantizer(
            embeddings, tower.excluded, config.quantizer_temperature, is_learnable=config.is_quantizer_learnable
        )

    def work_together(self, together: Together) -> None:
        """From now on the BatchNorm in train mode uses the rows of all these workers."""
        self.together = together

    def forward(
        self,
        frames: Float[Tensor, "batch layers frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None = None,
        *,
        step: int | None = None,
    ) -> HeadOutput:
        """The embeddings and the keywords.

        `lengths` has the number of frames of each row. Only train mode uses `seeds` and `step`: `seeds` has one 32-bit
        number for each row and switches dropout on. `step` counts from 0. Without it CIF scales its weights as in the
        first steps.
        """
        seeds = seeds if self.training else None
        track = self.weighted_sum(frames, lengths)
        if self.config.segmentation == "fixed":
            return self._fixed(track, lengths, seeds)
        return self._fired(track, lengths, seeds, is_rescaled=step is None or step < self.config.rescale_steps)

    def embed_images(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "images embedding"]:
        """CLIP's image vectors in fp32, each divided by its length."""
        return F.normalize(vectors.float(), dim=-1)

    def _cls_rows(self) -> dict[str, int]:
        """The name and the number of each kind of CLS rows, in their order."""
        has_parallel = self.config.has_parallel
        if self.config.segmentation == "cif":
            return {"cls": 1} if has_parallel else {}
        keywords = self.config.num_keywords
        return {"parallel_cls": 1, "cascaded_cls": keywords} if has_parallel else {"cls": keywords}

    def _cls(self) -> Float[Tensor, "queries width"]:
        return torch.cat([self.get_parameter(name)[0] for name in self._cls_rows()])

    def _fixed(self, track: Tensor, lengths: Tensor, seeds: Tensor | None) -> HeadOutput:
        """The output of a head that has one CLS row for each keyword."""
        rows = self.self_att(self._cls(), track, lengths, seeds)
        keywords = self.config.num_keywords
        return self._read(rows[:, :-keywords], rows[:, -keywords:], torch.full_like(lengths, keywords), seeds)

    def _fired(self, track: Tensor, lengths: Tensor, seeds: Tensor | None, *, is_rescaled: bool) -> HeadOutput:
        """The output of a head whose keywords come from CIF."""
        assert isinstance(self.self_att, AttentionBlock)
        count = int(self.config.has_parallel)
        if count:
            track = torch.cat([self._cls().expand(len(track), -1, -1), track], dim=1)
        rows = self.self_att.whole(track, lengths + count, seeds)
        fired: Fired = self.downsampling(
            rows[:, count:],
            lengths,
            seeds,
            is_rescaled=is_rescaled,
            together=self.together,
            first_site=_FIRING,
        )
        return self._read(rows[:, :count], fired.slots, fired.counts, seeds, fired.length_errors)

    def _read(
        self,
        parallel: Float[Tensor, "batch branches width"],
        slots: Float[Tensor, "batch slots width"],
        counts: Int[Tensor, " batch"],
        seeds: Tensor | None,
        length_errors: Tensor | None = None,
    ) -> HeadOutput:
        """The output for the rows that the attention gave.

        `parallel` has the row for the parallel embedding, if there is one. `slots` are the keywords before the
        projection; row b has `counts[b]` of them.
        """
        queries = self.bn_layer(self.linear_proj(slots, seeds, _KEYWORDS), self.together)
        tokens, chosen = self.vector_quantizer(queries, self.tower.embeddings)
        is_empty = torch.arange(slots.shape[1], device=slots.device) >= counts[:, None]
        keywords = Keywords(
            tokens=tokens.masked_fill(is_empty, 0),
            queries=queries.masked_fill(is_empty[:, :, None], 0),
            chosen=chosen.masked_fill(is_empty[:, :, None], 0),
            counts=counts,
        )
        cascaded = F.normalize(self.tower(keywords.chosen, counts), dim=-1)
        embedding = None
        if self.config.has_parallel:
            embedding = F.normalize(self.parallel_proj(parallel[:, 0], seeds, _PARALLEL), dim=-1)
        return HeadOutput(parallel=embedding, cascaded=cascaded, keywords=keywords, length_errors=length_errors)
