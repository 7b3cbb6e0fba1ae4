"""plan, featurize and rejected: compute the features of a manifest and commit them."""

from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import (
    console,
    counted,
    human_bytes,
    human_seconds,
    note_untrained,
    printable,
    say,
    show,
    table,
)
from speechclip.config import Settings
from speechclip.errors import REASONS

PLUMBING = "this shows speed and that the steps work, never quality"
SHOWN_CHARACTERS = 200


@click.command()
@settings_options("manifest", "store", "speech", "image", "text", "layers", "codec", "window", "json")
def plan(settings: Settings, as_json: bool) -> None:
    """Show what is stored, rejected and missing, and what the rest will cost. Changes nothing.

    Example: speechclip plan --manifest m.parquet --store S --speech hubert:facebook/hubert-base-ls960
    """
    from speechclip.featurization.driver import survey
    from speechclip.featurization.estimate import estimate
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore

    manifest, store = Manifest.read(settings.need("manifest")), FeatureStore(settings.need("store"))
    encoders = [request.build() for request in settings.encoder_requests()]
    coverage = survey(store, manifest, [encoder.spec for encoder in encoders])
    sizes = settings.featurize.tasks
    found = [estimate(part, encoder, store, sizes) for part, encoder in zip(coverage, encoders, strict=True)]
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    figures = ("planned", "stored", "rejected", "missing", "bytes", "objects", "one worker")
    shown = table("feature set", *figures, "rate from", figures=figures)
    for line in found:
        shown.add_row(
            line.feature_set,
            *(f"{count:,}" for count in (line.planned, line.stored, line.rejected, line.missing)),
            human_bytes(line.remaining_bytes),
            f"{line.remaining_objects:,}",
            human_seconds(line.worker_seconds),
            line.rate_from,
        )
    console().print(shown)
    note_untrained([line.feature_set for line in found if not line.is_trained], PLUMBING)


def _share(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise click.BadParameter(f"{value} is not a share; give a number from 0 to 1, such as 0.05")
    return value


@click.command()
@settings_options("manifest", "store", "speech", "image", "text", "layers", "codec", "window", "json")
@click.option(
    "--num-cpus",
    type=click.IntRange(min=1),
    help="The number of CPUs of the local Ray. Default: all. Ignored on a cluster.",
)
@click.option(
    "--max-rejected",
    type=float,
    callback=_share,
    help="Stop with exit code 3 if more than this share, from 0 to 1, is rejected. Default: 0.05.",
)
@click.option(
    "--retry",
    type=click.Choice(REASONS),
    multiple=True,
    metavar="REASON",
    help="Try assets again that were rejected for this reason, such as source-missing. Can be repeated.",
)
@click.option("--inline", is_flag=True, help="Work in this process, without Ray. Quicker for a small corpus.")
def featurize(
    settings: Settings,
    as_json: bool,
    num_cpus: int | None,
    max_rejected: float | None,
    retry: tuple[str, ...],
    inline: bool,
) -> None:
    """Compute every missing feature with Ray Data and commit it to the store. Safe to stop and run again.

    Example: speechclip featurize --manifest m.parquet --store S --image clip:ViT-B-32/openai
    """
    from speechclip.cli.follow import encode, follow
    from speechclip.featurization.driver import prepare_work
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore

    manifest, store = Manifest.read(settings.need("manifest")), FeatureStore(settings.need("store"))
    requests = settings.encoder_requests()
    specs = [request.build().spec for request in requests]
    options = settings.featurize
    work = prepare_work(store, manifest, list(zip(requests, specs, strict=True)), options.tasks, retry)
    _announce(work, specs)
    if work.plan.num_tasks and not inline:
        say("starting Ray; a small corpus is quicker with --inline")
    follow(
        work,
        encode(work, settings, inline=inline, num_cpus=num_cpus),
        "featurize",
        (lambda summary: None) if as_json else (lambda summary: _show(summary, store)),
        must_be_whole=True,
        max_rejected=options.max_rejected if max_rejected is None else max_rejected,
        group_seconds=options.commit_seconds,
    )


@click.command()
@settings_options("manifest", "store", "json")
def rejected(settings: Settings, as_json: bool) -> None:
    """List the sources that could not become a feature, with the reason.

    Example: speechclip rejected --manifest m.parquet --store S
    """
    from speechclip.featurization.rejections import list_rejected
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore

    store = FeatureStore(settings.need("store"))
    rows = list_rejected(store, Manifest.read(settings.need("manifest")))
    if not store.exists():
        say(f"{store.storage.root}: no feature store here yet; these sources could not be read at ingest")
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    shown = table("utterance", "reason", "source", "what happened", "feature set")
    for row in rows:
        others = f" and {len(row.utterances) - 1} more" if len(row.utterances) > 1 else ""
        detail = row.detail.removeprefix(f"{row.source}: ")
        cells = (f"{row.utterances[0]}{others}", row.reason, row.source, detail, row.feature_set)
        shown.add_row(*(printable(cell)[:SHOWN_CHARACTERS] for cell in cells))
    show(shown, "nothing of this manifest is rejected")


def _announce(work: Any, specs: list[Any]) -> None:
    num_missing = sum(len(part.missing) for part in work.before)
    num_planned = sum(part.num_planned for part in work.before)
    planned = counted(num_planned, "feature")
    say(f"{planned} planned, {num_planned - num_missing:,} settled before, {num_missing:,} to encode")
    if num_missing:
        left = work.plan.total
        size = f"{counted(left.num_tasks, 'task')}, about {human_bytes(left.num_bytes)}"
        say(f"plan {work.plan.id}: {size}; `speechclip plan` estimates the hours")
    note_untrained([spec.fingerprint for spec in specs if not spec.is_trained], PLUMBING)


def _show(summary: Any, store: Any) -> None:
    say(
        f"{summary.encoded:,} encoded, {summary.stored_before:,} stored before, {summary.rejected:,} rejected, "
        f"{summary.missing:,} missing; {human_bytes(summary.bytes)} in {human_seconds(summary.seconds)}; "
        f"{store.storage.root} is at catalog version {summary.catalog_version}"
    )
    if summary.rejected:
        say("`speechclip rejected` lists the reasons")
