"""Builds the head and the loss that a recipe describes, at the sizes of the encoders."""

import torch

from speechclip.errors import InvalidInput
from speechclip.heads import HeadConfig, KeywordConfig, ParallelConfig, TextTower
from speechclip.spec import EncoderSpec
from speechclip.training.losses import ContrastiveLoss
from speechclip.training.recipe import Recipe
from speechclip.training.vocabulary import Vocabulary

# Layers and width of HuBERT, and width of CLIP's joint space and tokens, of the two published pairs.
# Source: docs/model.md, "Base and Large".
PUBLISHED_SIZES = {"base": (13, 768, 512), "large": (25, 1024, 768)}


def configure_head(
    recipe: Recipe,
    speech: EncoderSpec,
    image: EncoderSpec,
    text: EncoderSpec | None = None,
    vocabulary: Vocabulary | None = None,
) -> HeadConfig:
    """The config of the recipe's head, at the sizes of these encoders.

    `text` and `vocabulary` are needed for a head with keywords only.
    """
    if not recipe.has_keywords:
        return _configure_parallel(recipe, len(speech.layers), speech.width, image.width)
    assert text is not None
    assert vocabulary is not None
    return _configure_keywords(
        recipe, len(speech.layers), speech.width, image.width, text.architecture["text_cfg"]["width"], len(vocabulary)
    )


def _configure_parallel(recipe: Recipe, num_layers: int, width: int, image_width: int) -> ParallelConfig:
    return ParallelConfig(
        num_layers=num_layers,
        width=width,
        image_width=image_width,
        embedding_width=recipe.embedding_width or image_width,
        feed_forward_width=recipe.feed_forward_factor * width,
        num_heads=recipe.num_heads or 8,
        dropout=recipe.dropout,
        normalize=recipe.normalize_states,
        image_projection=recipe.image_projection,
    )


def _configure_keywords(
    recipe: Recipe, num_layers: int, width: int, image_width: int, keyword_width: int, vocabulary_size: int
) -> KeywordConfig:
    if recipe.embedding_width not in (None, image_width):
        raise InvalidInput(
            f"recipe {recipe.name}: embedding_width is {recipe.embedding_width}, but the embeddings of a {recipe.head} "
            f"head are in CLIP's space of width {image_width}",
            "leave embedding_width out",
        )
    is_plus = recipe.head.endswith("-plus")
    return KeywordConfig(
        num_layers=num_layers,
        width=width,
        image_width=image_width,
        keyword_width=keyword_width,
        vocabulary_size=vocabulary_size,
        has_parallel=recipe.head.startswith("hybrid"),
        segmentation="cif" if is_plus else "fixed",
        num_keywords=recipe.num_keywords,
        num_heads=recipe.num_heads or 1,
        block=recipe.block,
        feed_forward_width=recipe.feed_forward_factor * width if recipe.block == "transformer" else 0,
        projection=recipe.keyword_projection,
        parallel_projection=recipe.parallel_projection,
        dropout=recipe.dropout,
        normalize=recipe.normalize_states,
        batch_norm="same" if is_plus else recipe.keyword_norm,
        norm_start=recipe.norm_start,
        quantizer_temperature=recipe.quantizer_temperature,
        is_quantizer_learnable=recipe.is_quantizer_learnable,
    )


def build_criterion(recipe: Recipe) -> ContrastiveLoss:
    """The recipe's loss. With `is_temperature_learnable` it has one parameter."""
    return ContrastiveLoss(
        recipe.temperature,
        is_learnable=recipe.is_temperature_learnable,
        is_same_group_masked=recipe.is_same_image_masked,
    )


def count_trainable(recipe: Recipe) -> int | None:
    """How many numbers a recipe trains, a learnable temperature included; None if it does not name its `encoders`.

    It does not depend on the size of the vocabulary, because the token embeddings are frozen.
    """
    if recipe.encoders is None:
        return None
    num_layers, width, joint = PUBLISHED_SIZES[recipe.encoders]
    with torch.device("meta"):
        head: torch.nn.Module
        if recipe.has_keywords:
            head = _configure_keywords(recipe, num_layers, width, joint, joint, 4).build(_bare_tower(joint))
        else:
            head = _configure_parallel(recipe, num_layers, width, joint).build()
        modules = (head, build_criterion(recipe))
        return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _bare_tower(width: int) -> TextTower:
    """A text tower with four tokens and no layers, to count the parameters of the rest."""
    shapes = {
        "token_embedding.weight": (4, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return TextTower(weights, num_heads=1, is_quick_gelu=True, vocabulary=range(4), padding=0, start=1, end=2)
