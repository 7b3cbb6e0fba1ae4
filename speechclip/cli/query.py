"""embed and query: keep the embeddings of a head in the store, and search them."""

import dataclasses
from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import counted, human_seconds, note_untrained, say, show, table
from speechclip.config import Settings
from speechclip.records import Modality


@click.command()
@settings_options("run", "manifest", "store", "json")
def embed(settings: Settings, as_json: bool) -> None:
    """Embed every stored utterance with a trained head, so that it can be found. A second run adds nothing.

    Example: speechclip embed --run RUN --manifest m.parquet --store S
    """
    from speechclip.cli.follow import follow
    from speechclip.manifest import Manifest
    from speechclip.retrieval.embed import embed_tasks, prepare_embedding
    from speechclip.store import FeatureStore
    from speechclip.training.run import load_run

    manifest, trained = Manifest.read(settings.need("manifest")), load_run(settings.need("run"))
    store, options = FeatureStore(settings.need("store")), settings.featurize
    work = prepare_embedding(store, manifest, trained, options.tasks)

    def show(summary: Any) -> None:
        if as_json:
            return
        say(
            f"{counted(summary.encoded, 'utterance')} embedded, {summary.stored_before:,} before, {summary.missing:,} "
            f"without features; {human_seconds(summary.seconds)}; catalog version {summary.catalog_version}"
        )
        note_untrained(
            trained.info.identity.untrained,
            "these vectors only show that the steps work, not the quality of SpeechCLIP",
        )

    follow(work, embed_tasks(work, trained), "embed", show, must_be_whole=False, group_seconds=options.commit_seconds)


@click.command()
@settings_options("run", "store", "json", "version")
@click.option("--text", "question_text", metavar="TEXT", help="Ask with a sentence.")
@click.option("--audio", metavar="FILE", help="Ask with a recording: a path or an address.")
@click.option("--image", "question_image", metavar="FILE", help="Ask with a picture: a path or an address.")
@click.option(
    "--among",
    type=click.Choice(["speech", "image", "text"]),
    help="What to search. Default: speech, or image for --audio.",
)
@click.option("-k", "count", default=5, show_default=True, help="The number of answers.")
def query(
    settings: Settings,
    as_json: bool,
    version: str | None,
    question_text: str | None,
    audio: str | None,
    question_image: str | None,
    among: Modality | None,
    count: int,
) -> None:
    """Find the stored utterances, pictures or texts nearest to a question: a text, a recording or a picture.

    Example: speechclip query --run RUN --store S --text "a dog runs" --among speech
    """
    if sum(question is not None for question in (question_text, audio, question_image)) != 1:
        raise click.UsageError("ask with exactly one of --text, --audio and --image")
    from speechclip.retrieval.search import Searcher
    from speechclip.store import FeatureStore
    from speechclip.training.run import load_run

    searcher = Searcher(FeatureStore(settings.need("store")), load_run(settings.need("run")), version)
    if question_text is not None:
        asked = searcher.model.embed_text(question_text)
    elif audio is not None:
        asked = searcher.model.embed(audio)
    else:
        asked = searcher.model.embed_image(str(question_image))
    answers = searcher.search(asked, among or ("image" if audio else "speech"), count)
    if as_json:
        click.echo(msgspec.json.encode([dataclasses.asdict(answer) for answer in answers]))
        return
    shown = table("cosine", "utterance", "text", "recording", "picture", figures=["cosine"])
    for answer in answers:
        shown.add_row(f"{answer.score:.3f}", answer.utterance, answer.text, answer.audio_uri, answer.image_uri)
    show(shown, "nothing is stored that could answer; run `speechclip featurize` and `speechclip embed` first")
    note_untrained(
        searcher.identity.untrained, "these answers only show that the steps work, not the quality of SpeechCLIP"
    )
