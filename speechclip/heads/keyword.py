"""Heads with a cascaded branch: keywords of CLIP's vocabulary, read by its text encoder (SPEECHCLIP_SPEC 2.4, 2.11)."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from speechclip.errors import InvalidInput
from speechclip.heads.output import HeadOutput
from speechclip.heads.text_tower import TextTower
from speechclip.heads.weighted_sum import Normalization
from speechclip.records import Record

Segmentation = Literal["fixed", "cif"]
Block = Literal["attention", "transformer"]
KeywordNorm = Literal["each", "each-apart", "same"]
NormStart = Literal["literal", "corrected"]


class KeywordConfig(Record, frozen=True, tag="keyword"):
    """A cascaded head, or with `has_parallel` a hybrid one; `segmentation` `cif` makes them SpeechCLIP+'s.

    `image_width` is CLIP's joint space, in which both embeddings lie; `keyword_width` the text tower's token width.
    `projection` holds the hidden widths between attention and keywords: none for one Linear, (1024,) for the released
    Large checkpoints' two. `batch_norm` is `each` keyword's own statistics in one BatchNorm over (width x keywords)
    (officially `eachKw`, parallel), `each-apart` the same in one module a keyword, `same` one for all keywords; CIF
    always has `same`. `norm_start` `literal` repeats the official initialisation, scrambled against the layout; `corrected`
    gives each feature its own. `frames_per_keyword`, `max_keywords` and `rescale_steps` are CIF's.
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

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise InvalidInput(f"{self.num_heads} attention heads do not divide the width {self.width}; change either")

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings: that of CLIP's joint space."""
        return self.image_width

    def build(self, tower: TextTower | None = None) -> "KeywordHead":
        """A new head, its weights drawn from torch's generator, on a text tower of these sizes."""
        raise NotImplementedError


class KeywordHead(nn.Module):
    """Frames to keywords to an embedding."""

    def __init__(self, config: KeywordConfig, tower: TextTower) -> None:
        super().__init__()
        self.config, self.tower = config, tower

    def forward(
        self,
        frames: Float[Tensor, "batch layers frames width"],
        lengths: Int[Tensor, " batch"],
        seeds: Int[Tensor, " batch"] | None = None,
        *,
        step: int | None = None,
    ) -> HeadOutput:
        """Both branches' embeddings and the keywords; `seeds` and `step` (from 0) matter in train mode alone."""
        raise NotImplementedError

    def embed_images(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "images embedding"]:
        """CLIP's vectors brought to length one, in fp32."""
        raise NotImplementedError
