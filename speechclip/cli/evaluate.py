"""evaluate and keywords: measure a trained head, and list the words that it hears in one utterance."""

from typing import Any

import click
import msgspec

from speechclip.cli.options import in_ray_job, settings_options
from speechclip.cli.terminal import console, note_untrained, progress_line, say, table
from speechclip.config import Settings, whole_path

scoring_option = click.option(
    "--keyword-scoring",
    "scoring",
    type=click.Choice(["cosine", "pseudo-inverse"]),
    default="cosine",
    show_default=True,
    help="How to rank the tokens near a keyword.",
)


@click.command()
@settings_options("run", "manifest", "store", "json", "version")
@click.option("--split", metavar="NAME", help="The split to measure. Default: test.")
@click.option(
    "--candidates",
    type=click.Choice(["split", "all"]),
    default="split",
    show_default=True,
    help="Which images and captions may answer: those of the split, or all of the manifest.",
)
@click.option(
    "--speech",
    "speech_set",
    metavar="SET",
    help="Read another feature set of the run's encoder, for example whole utterances after a training on crops.",
)
@click.option(
    "--compat-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Encode now in padded batches of N, as the official evaluation does with N = 8. Stores nothing.",
)
@click.option("--out", metavar="DIR", help="Also write report.json and report.txt into this folder or s3:// address.")
@scoring_option
def evaluate(
    settings: Settings,
    as_json: bool,
    version: str | None,
    candidates: Any,
    speech_set: str | None,
    compat_batch: int | None,
    out: str | None,
    scoring: Any,
) -> None:
    """Measure a trained head on a split: recall beside chance and the published figures, and its keywords.

    Example: speechclip evaluate --run RUN --manifest m.parquet --store S --split test
    """
    from speechclip.evaluation.evaluator import evaluate as evaluate_run
    from speechclip.evaluation.report import write_report
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore
    from speechclip.training.run import load_run

    trained = load_run(settings.need("run"))
    snapshot = FeatureStore(settings.need("store")).snapshot(version)
    manifest = Manifest.read(settings.need("manifest"))
    padded = None
    if compat_batch is not None:
        from speechclip.evaluation.compat import PaddedFrames
        from speechclip.retrieval.model import Model

        padded = PaddedFrames(Model(trained).encoder("speech"), manifest, settings.split, compat_batch)
    report = evaluate_run(
        trained,
        manifest,
        snapshot,
        settings.split,
        candidates=candidates,
        scoring=scoring,
        speech=speech_set,
        padded=padded,
        on_progress=progress_line("utterances"),
    )
    if out is not None:
        write_report(whole_path(out), report)
        say(f"{out}: report.json and report.txt")
    if as_json:
        click.echo(msgspec.json.encode(report))
        return
    page = console()
    for shown in report.to_tables():
        page.print(shown)
    for line in report.closing_lines():
        page.print(line)
    if in_ray_job():
        # A program that reads the job's log finds the result in its last line.
        click.echo(msgspec.json.encode(report))


@click.command()
@settings_options("run", "store", "json", "version")
@click.option("--utterance", metavar="ID", help="A stored utterance, by its id in the manifest.")
@click.option("--audio", metavar="FILE", help="A recording: a path or an s3:// address.")
@scoring_option
def keywords(
    settings: Settings, as_json: bool, version: str | None, utterance: str | None, audio: str | None, scoring: Any
) -> None:
    """List the words that a head hears in one utterance, each with the tokens nearest to it.

    Example: speechclip keywords --run RUN --audio hello.wav
    """
    if (utterance is None) == (audio is None):
        raise click.UsageError("name one of --utterance and --audio")
    from speechclip.evaluation.discovery import discover
    from speechclip.retrieval.model import Model
    from speechclip.retrieval.search import Searcher
    from speechclip.store import FeatureStore
    from speechclip.training.run import load_run

    trained = load_run(settings.need("run"))
    if utterance is None:
        hidden = Model(trained).encode_audio(str(audio))
    else:
        hidden = Searcher(FeatureStore(settings.need("store")), trained, version).stored_frames(utterance)
    found = discover(trained, hidden, scoring)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    shown = table("slot", "token", "cosine", "nearest to the token", "nearest to the query", figures=["slot", "cosine"])
    for keyword in found:
        near = [
            ", ".join(f"{other.token} {other.score:.2f}" for other in others)
            for others in (keyword.near_chosen, keyword.near_query)
        ]
        shown.add_row(str(keyword.slot), keyword.chosen.token, f"{keyword.chosen.score:.3f}", *near)
    console().print(shown)
    note_untrained(
        trained.info.identity.untrained, "these words only show that the steps work, not the quality of SpeechCLIP"
    )
