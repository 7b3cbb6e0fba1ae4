"""The reasons why a run's figures can't be compared with the published ones on its recipe's corpus."""

from collections.abc import Iterator

from speechclip.errors import InvalidInput
from speechclip.evaluation.published import TEST_POOLS, corpus_of
from speechclip.evaluation.report import EvaluationReport
from speechclip.training.blueprint import PUBLISHED_SIZES
from speechclip.training.identity import RunIdentity
from speechclip.training.recipe import Recipe, load_recipe

_CLIPS = {"base": "clip:ViT-B-32", "large": "clip:ViT-L-14"}


def caveats_of(report: EvaluationReport, identity: RunIdentity) -> tuple[str, ...]:
    """The known differences to the published setting, one clause each; none if nothing is published for the recipe."""
    return tuple(_differences(report, identity)) if corpus_of(report.recipe) else ()


def _differences(report: EvaluationReport, identity: RunIdentity) -> Iterator[str]:
    corpus = corpus_of(report.recipe)
    assert corpus is not None
    if report.untrained:
        yield "encoders have random weights"
    if report.split != "test":
        yield f"the split is {report.split!r}, the published figures are of 'test' (a few are marked as of 'dev')"
    if report.candidates != "split":
        yield "the candidates are those of the whole manifest, not of the split"
    utterances, images = TEST_POOLS[corpus]
    found = report.main.from_speech
    if (found.num_queries, found.num_candidates) != (utterances, images):
        yield (
            f"{found.num_queries:,} utterances among {found.num_candidates:,} images, {corpus} has {utterances:,} "
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
        yield (
            f"speech is encoded by {identity.speech.encoder_name}, in the paper by all layers of a HuBERT of width "
            f"{width}"
        )
    if not identity.image.encoder_name.startswith(clip):
        yield f"images are encoded by {identity.image.encoder_name}, in the paper by {clip}"
    yield from _changes(identity.recipe)


def _changes(recipe: Recipe) -> Iterator[str]:
    """The keys in which a recipe differs from the package's recipe of that name."""
    try:
        original = load_recipe(recipe.name)
    except InvalidInput:
        yield f"the package has no recipe {recipe.name} to compare with"
        return
    changed = [name for name in Recipe.__struct_fields__ if getattr(recipe, name) != getattr(original, name)]
    if changed:
        yield f"the recipe has other values than the package's {recipe.name} for {', '.join(changed)}"
