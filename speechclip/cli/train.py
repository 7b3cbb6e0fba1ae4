"""train: train a head from stored features."""

from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import human_seconds, note_untrained, say
from speechclip.config import Settings
from speechclip.records import Record


@click.command()
@settings_options("manifest", "store", sets_recipe=True)
@click.option(
    "--recipe", metavar="NAME", help="A recipe's name or YAML file. `--set key=value` changes a single key of it."
)
@click.option(
    "--out",
    "run",
    metavar="DIR",
    help="The folder of the run: a path or s3://. A training that was stopped there goes on.",
)
@click.option("--workers", type=int, help="The number of training processes. The result does not depend on it.")
@click.option("--min-workers", type=int, help="Go on with this many if nodes are lost. Default: all of them.")
@click.option("--num-cpus", type=int, help="The number of CPUs of the local Ray. Default: all. Ignored on a cluster.")
@click.option(
    "--speech",
    "speech_set",
    metavar="SET",
    help="The speech feature set if several are stored: a fingerprint, its start, or an encoder name.",
)
@click.option("--image", "image_set", metavar="SET", help="The same for images.")
@click.option("--text", "text_set", metavar="SET", help="The same for texts, if the recipe trains towards them.")
@click.option(
    "--version",
    metavar="N|TAG",
    help="Read this catalog version, by number or tag. Default: the newest, or that of the training that goes on.",
)
def train(
    settings: Settings,
    num_cpus: int | None,
    speech_set: str | None,
    image_set: str | None,
    text_set: str | None,
    version: str | None,
) -> None:
    """Train a head with Ray Train from stored features. Run again, it goes on from its last checkpoint.

    Example: speechclip train --manifest m.parquet --store S --recipe base-parallel-flickr8k --out RUN
    """
    from speechclip.training.recipe import load_recipe

    # First, because the imports below take seconds: a misspelt recipe is reported at once.
    recipe = load_recipe(settings.recipe, settings.recipe_overrides)
    from speechclip.jobs.train import TrainRequest
    from speechclip.jobs.train import train as train_on_ray
    from speechclip.status import Reporter
    from speechclip.storage import Storage
    from speechclip.store import FeatureStore
    from speechclip.training.checkpoint import STATUS

    out = settings.need("run", "--out")
    request = TrainRequest(
        manifest=settings.need("manifest"),
        store=settings.need("store"),
        out=out,
        recipe=recipe,
        speech=speech_set or settings.speech,
        image=image_set or settings.image,
        text=text_set or settings.text,
        catalog_version=FeatureStore(settings.need("store")).version_of(version),
        workers=settings.workers,
        num_cpus=num_cpus or settings.featurize.num_cpus,
        runtime_env=settings.runtime_env,
        min_workers=settings.min_workers,
        node_wait_seconds=settings.node_wait_seconds,
    )
    last: list[Any] = [None]

    def follow(progress: Any) -> None:
        last[0] = progress
        _tell(progress)

    with Reporter(Storage(out), STATUS, job=out, command="train", look=lambda: last[0]) as reporter:
        info = train_on_ray(request, follow, lambda found: say(f"{out}: {found}"))
        summary = TrainSummary.of(out, info)
        reporter.conclude(summary)
    best = f", best mean R@10 on dev {100 * info.best.recall:.1f} % at step {info.best.step}" if info.best else ""
    say(f"{out}: {info.num_steps} steps of {info.batch_size} from {info.num_rows:,} utterances{best}")
    if info.batch_size < recipe.batch_size:
        say(f"note: the recipe asks for batches of {recipe.batch_size}; there are fewer rows, so each step used all")
    note_untrained(info.identity.untrained, "this head only shows that the steps work, not the quality of SpeechCLIP")
    click.echo(msgspec.json.encode(summary))


class TrainSummary(Record, frozen=True):
    """The last line of a training. `best_recall` is the best mean recall at 10 on the dev split, from 0 to 1.

    It is None if no dev split was measured.
    """

    run: str
    steps: int
    batch_size: int
    utterances: int
    missing: int
    best_step: int | None
    best_recall: float | None
    catalog_version: int
    order_digest: str
    head_sha256: str
    untrained: list[str]

    @classmethod
    def of(cls, run: str, info: Any) -> "TrainSummary":
        """The summary of the run that this record describes."""
        return cls(
            run=run,
            steps=info.num_steps,
            batch_size=info.batch_size,
            utterances=info.num_rows,
            missing=info.num_missing,
            best_step=info.best.step if info.best else None,
            best_recall=info.best.recall if info.best else None,
            catalog_version=info.identity.catalog_version,
            order_digest=info.order_digest,
            head_sha256=info.head_sha256,
            untrained=info.identity.untrained,
        )


def _tell(progress: Any) -> None:
    """Print one line for each report of worker 0."""
    recall = f", mean R@10 on dev {100 * progress.recall:.1f} %" if progress.recall is not None else ""
    say(
        f"step {progress.step} of {progress.max_steps}, loss {progress.loss:.4f}{recall}, "
        f"{progress.steps_per_second:.1f} steps/s ({100 * progress.wait_share:.0f} % waiting for data), "
        f"{human_seconds(progress.eta_seconds)} left",
        progress=msgspec.to_builtins(progress),
    )
