"""Why a run's figures and the published ones of its recipe's corpus are not of the same thing."""

from collections.abc import Iterator

from speechclip.errors import InvalidInput
from speechclip.evaluation.published import TEST_POOLS, corpus_of
from speechclip.evaluation.report import EvaluationReport
from speechclip.training.blueprint import PUBLISHED_SIZES
from speechclip.training.identity import RunIdentity
from speechclip.training.recipe import Recipe, load_recipe

_CLIPS = {"base": "clip:ViT-B-32", "large": "clip:ViT-L-14"}


def caveats_of(report: EvaluationReport, identity: RunIdentity) -> tuple[str, ...]:
    """Each difference that is known, as a clause; none for a recipe that nothing is published of."""
    return tuple(_differences(report, identity)) if corpus_of(report.recipe) else ()


def _differences(report: EvaluationReport, identity: RunIdentity) -> Iterator[str]:
    corpus = corpus_of(report.recipe)
    assert corpus is not None
    if report.untrained:
        yield "encoders have random weights"
    if report.split != "test":
        yield f"the split is {report.split!r}, the published ones are of 'test' (and of 'dev' where they say so)"
    if report.candidates != "split":
        yield "the candidates are those of the whole manifest"
    utterances, images = TEST_POOLS[corpus]
    asked = report.main.from_speech
    if (asked.num_queries, asked.num_candidates) != (utterances, images):
        yield (
            f"{asked.num_queries:,} utterances among {asked.num_candidates:,} images, {corpus} has {utterances:,} "
            f"and {images:,}"
        )
    if report.text is not None and report.text.retrieval.from_speech.num_candidates != utterances:
        yield f"{report.text.retrieval.from_speech.num_candidates:,} captions compete, {corpus} has {utterances:,}"
    if report.num_missing:
        yield f"{report.num_missing:,} utterances have no stored features"
    size = report.recipe.partition("-")[0]
    (num_layers, width, _), clip = PUBLISHED_SIZES[size], _CLIPS[size]
    is_hubert = identity.speech.encoder_name.startswith("hubert:")
    if not is_hubert or (identity.head.num_layers, identity.head.width) != (num_layers, width):
        yield f"speech is encoded by {identity.speech.encoder_name}, published by HuBERT of width {width}, all states"
    if not identity.image.encoder_name.startswith(clip):
        yield f"images are encoded by {identity.image.encoder_name}, published by {clip}"
    yield from _changes(identity.recipe)


def _changes(recipe: Recipe) -> Iterator[str]:
    """How a recipe differs from the package's of that name."""
    try:
        original = load_recipe(recipe.name)
    except InvalidInput:
        yield f"there is no recipe {recipe.name} here to compare with"
        return
    changed = [name for name in Recipe.__struct_fields__ if getattr(recipe, name) != getattr(original, name)]
    if changed:
        yield f"the recipe has another {', '.join(changed)} than the package's {recipe.name}"
