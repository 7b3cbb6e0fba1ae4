"""train and evaluate: from stored features to a head, and its recall."""

from typing import Any

import click
import msgspec

from speechclip.cli.options import console, human_seconds, note_untrained, say, settings_options
from speechclip.config import Settings, whole_path


@click.command()
@settings_options("manifest", "store", sets_recipe=True)
@click.option(
    "--recipe", metavar="NAME", help="A recipe's name or YAML file; `--set key=value` changes single keys of it."
)
@click.option(
    "--out", required=True, metavar="DIR", help="The run folder (path or s3://); a run cut short there goes on."
)
@click.option("--workers", type=int, help="Training processes; the result does not depend on their number.")
@click.option("--num-cpus", type=int, help="Logical CPUs of the local Ray; default all. Ignored on a cluster.")
@click.option(
    "--speech", "speech_set", metavar="SET", help="Feature set (fingerprint, its start, or SPEC) if several are stored."
)
@click.option("--image", "image_set", metavar="SET", help="Likewise for images.")
@click.option(
    "--version",
    metavar="N|TAG",
    help="Pin a catalog version, by number or tag; default the newest, or the resumed run's.",
)
def train(
    settings: Settings,
    out: str,
    num_cpus: int | None,
    speech_set: str | None,
    image_set: str | None,
    version: str | None,
) -> None:
    """Train a head on Ray Train from stored features; run again, it goes on from its last checkpoint."""
    from speechclip.jobs.train import TrainRequest
    from speechclip.jobs.train import train as train_on_ray
    from speechclip.recipe import load_recipe
    from speechclip.store import FeatureStore

    recipe = load_recipe(settings.recipe, settings.recipe_overrides)
    request = TrainRequest(
        manifest=settings.need("manifest"),
        store=settings.need("store"),
        out=whole_path(out),
        recipe=recipe,
        speech=speech_set or settings.speech,
        image=image_set or settings.image,
        catalog_version=FeatureStore(settings.need("store")).version_of(version),
        workers=settings.workers,
        num_cpus=num_cpus or settings.featurize.num_cpus,
    )
    info = train_on_ray(request, _follow)
    best = f", best mean R@10 on dev {100 * info.best.recall:.1f} % at step {info.best.step}" if info.best else ""
    say(f"{out}: {info.num_steps} steps of {info.batch_size} from {info.num_rows:,} utterances{best}")
    note_untrained(info.identity.untrained, "this head shows the road, not SpeechCLIP's quality")


@click.command()
@settings_options("run", "manifest", "store", "json", "version")
@click.option("--split", metavar="NAME", help="The split to evaluate; default test.")
@click.option(
    "--candidates",
    type=click.Choice(["split", "all"]),
    default="split",
    show_default=True,
    help="Whose images may answer.",
)
@click.option(
    "--speech",
    "speech_set",
    metavar="SET",
    help="Judge by another feature set of the run's encoder, as of whole utterances where it was trained on crops.",
)
@click.option(
    "--compat-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Encode online in padded batches of N in file order, as the official evaluation does (8); stores nothing.",
)
def evaluate(
    settings: Settings,
    as_json: bool,
    version: str | None,
    candidates: Any,
    speech_set: str | None,
    compat_batch: int | None,
) -> None:
    """Recall of a head in both directions beside chance: a table, or JSON."""
    from speechclip.checkpoint import load_run
    from speechclip.evaluation import evaluate as evaluate_run
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore

    trained = load_run(settings.need("run"))
    snapshot = FeatureStore(settings.need("store")).snapshot(version)
    manifest = Manifest.read(settings.need("manifest"))
    padded = None
    if compat_batch is not None:
        from speechclip.compat import PaddedFrames
        from speechclip.model import Model

        padded = PaddedFrames(Model(trained).encoder("speech"), manifest, settings.split, compat_batch)
    report = evaluate_run(
        trained, manifest, snapshot, settings.split, candidates=candidates, speech=speech_set, padded=padded
    )
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        console().print(report.to_table())


def _follow(progress: Any) -> None:
    """One line a report of worker 0."""
    recall = f", mean R@10 on dev {100 * progress.recall:.1f} %" if progress.recall is not None else ""
    say(
        f"step {progress.step} of {progress.max_steps}, loss {progress.loss:.4f}{recall}, "
        f"{progress.steps_per_second:.1f} steps/s ({100 * progress.wait_share:.0f} % waiting for data), "
        f"{human_seconds(progress.eta_seconds)} left"
    )
