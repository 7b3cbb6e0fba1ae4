"""verify and repair: check a store, and fix what is damaged."""

import functools
from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import console, counted, human_bytes, printable, progress_line, say, table
from speechclip.config import Settings
from speechclip.errors import Damaged, WorkLeft


@click.command()
@settings_options("store", "json")
@click.option(
    "--recompute", type=click.IntRange(min=0), default=0, metavar="N", help="Also encode N random assets again."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones.")
def verify(settings: Settings, as_json: bool, recompute: int, seed: int) -> None:
    """Check every file of the store against its checksums. Changes nothing. Exit code 1 if anything is damaged.

    Example: speechclip verify --store S
    """
    from speechclip.store import FeatureStore
    from speechclip.upkeep.recompute import recompute as encode_again
    from speechclip.upkeep.verify import verify as verify_store

    store = FeatureStore(settings.need("store"))
    report = verify_store(store, on_progress=progress_line("MB", 1e6))
    again = encode_again(store, store.snapshot(), recompute, seed) if recompute and not report.findings else []
    if as_json:
        click.echo(msgspec.json.encode({"report": report, "recomputed": again}))
    else:
        _show_report(report)
        _show_recomputed(again)
        if recompute and report.findings:
            say("nothing was encoded again: repair first")
    if report.findings:
        # Without the log nobody knows what should be there.
        rest = (
            f"to be encoded again: {counted(_num_keys(report), 'asset')}" if report.versions else "the rest unchecked"
        )
        raise Damaged(f"{store.storage.root}: damaged or gone: {counted(len(report.findings), 'file')}, {rest}")
    unequal = [found.feature_set for found in again if not found.is_equal]
    if unequal:
        raise Damaged(
            f"{', '.join(unequal)}: features encoded again differ beyond the bound",
            "look at weights and library versions",
        )


@click.command()
@settings_options("store", "manifest", "speech", "image", "text", "layers", "codec", "window", "json")
@click.option("--num-cpus", type=int, help="Logical CPUs of the local Ray; default all. Ignored on a cluster.")
@click.option("--inline", is_flag=True, help="Encode in this process, without Ray.")
@click.option("--forget", is_flag=True, help="Give up catalog files lost with their copies; then featurize again.")
def repair(settings: Settings, as_json: bool, num_cpus: int | None, inline: bool, forget: bool) -> None:
    """Fix what is damaged, and encode again only what is lost.

    A manifest or an encoder is needed only where the store's own copy of it is damaged.
    """
    from speechclip.cli.follow import encode
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore
    from speechclip.upkeep.repair import repair as repair_store

    store = FeatureStore(settings.need("store"))
    requests = settings.encoder_requests() if settings.speech or settings.image or settings.text else []

    done = repair_store(
        store,
        functools.partial(encode, settings=settings, inline=inline, num_cpus=num_cpus),
        manifests=[Manifest.read(settings.manifest)] if settings.manifest else [],
        encoders=[(request, request.build().spec) for request in requests],
        sizes=settings.featurize.tasks,
        forget=forget,
        on_progress=progress_line("MB", 1e6),
    )
    if as_json:
        click.echo(msgspec.json.encode(done))
    else:
        for finding in done.repaired:
            say(f"repaired {finding.path}: {finding.problem}")
        for path in done.forgotten:
            say(f"forgot {path}: what only this file named is missing; `speechclip featurize` encodes it again")
        say(f"{counted(len(done.repaired), 'file')} repaired, {counted(done.encoded, 'asset')} encoded again")
    if done.dropped_embeddings:
        say(f"{counted(done.dropped_embeddings, 'damaged embedding')} dropped; `speechclip embed` makes them again")
    if done.problems:
        raise WorkLeft("; ".join(done.problems))


def _show_report(report: Any) -> None:
    if report.findings:
        shown = table("kind", "file", "what is wrong", "assets to encode", figures=("assets to encode",))
        for finding in report.findings:
            shown.add_row(finding.kind, printable(finding.path), printable(_problem(finding)), f"{len(finding.keys):,}")
        console().print(shown)
    versions = ", ".join(map(str, report.versions))
    if versions:
        say(
            f"catalog version {versions}: {counted(report.assets, 'feature')} in {counted(report.files, 'file')}, "
            f"{human_bytes(report.bytes)} read; {len(report.findings):,} damaged or gone"
        )
    if report.orphans:
        say(
            f"no checked version names {counted(report.orphans, 'file')} with {human_bytes(report.orphan_bytes)}: a "
            "job is about to commit that, or `speechclip gc` will delete it"
        )


def _problem(finding: Any) -> str:
    """What is wrong, and what to do unless that is a repair: the command's last line says so for all findings."""
    from speechclip.upkeep.findings import REPAIR

    return str(finding.problem if finding.advice == REPAIR else f"{finding.problem}; {finding.advice}")


def _show_recomputed(again: list[Any]) -> None:
    for found in again:
        gone = f"; {found.without_source:,} have no source any more" if found.without_source else ""
        say(
            f"{found.feature_set}: {found.assets:,} encoded again, largest difference {found.largest_difference:.2g} "
            f"of a feature's largest number, bound {found.bound:.2g}{gone}"
        )


def _num_keys(report: Any) -> int:
    return len({(finding.feature_set, key) for finding in report.findings for key in finding.keys})
