"""drop, gc, history and tag: remove features, free space, list versions and name them."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import console, counted, human_bytes, progress_line, say, show, table
from speechclip.config import Settings
from speechclip.errors import Damaged
from speechclip.records import MODALITIES


@click.command()
@settings_options("store", "json")
@click.argument("feature_sets", metavar="[FEATURE_SET]...", nargs=-1)
@click.option("--manifest", "doomed", metavar="FILE", help="Remove only the assets of this manifest.")
@click.option("--speaker", metavar="NAME", help="Remove only the speech of this speaker in the manifest.")
@click.option("--modality", type=click.Choice(MODALITIES), help="Remove only from feature sets of this kind.")
@click.option(
    "--erase", is_flag=True, help="Also rewrite shards that hold other features, so that gc can delete every byte."
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed and change nothing.")
def drop(
    settings: Settings,
    as_json: bool,
    feature_sets: tuple[str, ...],
    doomed: str | None,
    speaker: str | None,
    modality: Any,
    erase: bool,
    dry_run: bool,
) -> None:
    """Remove features from the store: a whole feature set, a corpus, or a speaker who withdrew.

    FEATURE_SET is a fingerprint, the start of one, or an encoder name. Versions of the last seven days and tags still
    hold the removed features. `speechclip gc` deletes the bytes later.

    Example: speechclip drop --store S --manifest m.parquet --speaker anna --erase
    """
    from speechclip.featurization.driver import new_job
    from speechclip.manifest import Manifest
    from speechclip.store import FeatureStore
    from speechclip.upkeep.drop import keys_to_drop
    from speechclip.upkeep.erase import rewrite_shared_shards

    if not feature_sets and doomed is None:
        raise click.UsageError("name a FEATURE_SET or a --manifest")
    if speaker is not None and doomed is None:
        raise click.UsageError("--speaker needs a --manifest that names the speakers")
    store = FeatureStore(settings.need("store"))
    snapshot = store.snapshot()
    snapshot.check_tags()
    chosen = keys_to_drop(snapshot, feature_sets, Manifest.read(doomed) if doomed else None, speaker, modality)
    counts = {name: len(keys & snapshot.keys(name)) for name, keys in chosen.items()}
    job = new_job()
    if erase and not dry_run:
        num_moved = rewrite_shared_shards(store, chosen, job=job, on_progress=progress_line("shards"))
        say(f"{counted(num_moved, 'shared shard')} rewritten")
    version = None if dry_run else store.drop(chosen, job=job)
    if as_json:
        click.echo(msgspec.json.encode({"dropped": counts, "catalog_version": version}))
        return
    for name, count in counts.items():
        say(f"{name}: {counted(count, 'asset')} {'would be ' if dry_run else ''}dropped")
    if not any(counts.values()) or (version is None and not dry_run):
        say("none of this is stored; `speechclip history` lists what is")
    elif not dry_run:
        say(f"catalog version {version}; older versions hold them until `speechclip gc` deletes them, after seven days")
        are_shared = any(snapshot.keys(name) - keys for name, keys in chosen.items())
        _tell_what_stays(store, are_shared=are_shared and not erase, has_manifest=doomed is not None)


def _tell_what_stays(store: Any, *, are_shared: bool, has_manifest: bool) -> None:
    """Print why the removed features may still be there, or come back."""
    for tag in store.tags.readable():
        say(f"tag {tag.name} keeps version {tag.version} with them; `speechclip tag --delete {tag.name}` ends this")
    if are_shared:
        say("a shard that also holds other features is kept whole; drop the same with --erase before the next gc")
    if has_manifest:
        say("`speechclip featurize` with this manifest would encode them again; ingest a table without them")


@click.command()
@settings_options("store", "json")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, to the byte, and change nothing.")
@click.option("--now", is_flag=True, help="Skip the grace period of seven days. Safe only while NO job uses the store.")
def gc(settings: Settings, as_json: bool, dry_run: bool, now: bool) -> None:
    """Delete the files that no live version needs.

    Live are the newest version, those of the last seven days, and tagged ones.

    Example: speechclip gc --store S --dry-run
    """
    from speechclip.store import FeatureStore
    from speechclip.store.grace import GRACE_SECONDS
    from speechclip.upkeep.gc import delete_unused

    store = FeatureStore(settings.need("store"))
    report = progress_line("files deleted")
    freed = delete_unused(store, grace_seconds=0 if now else GRACE_SECONDS, dry_run=dry_run, on_progress=report)
    if as_json:
        click.echo(msgspec.json.encode(freed))
        return
    tags = f" and the tagged {', '.join(map(str, freed.versions))}" if freed.versions else ""
    say(
        f"{'would delete' if dry_run else 'deleted'} {counted(freed.files, 'file')} with {human_bytes(freed.bytes)} "
        f"({freed.bytes:,} B); catalog versions from {freed.since} on{tags} stay readable"
    )
    if freed.uploads:
        say(f"{counted(freed.uploads, 'unfinished upload')} with {human_bytes(freed.upload_bytes)} too")


@click.command()
@settings_options("store", "json")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The number of versions."
)
def history(settings: Settings, as_json: bool, limit: int) -> None:
    """List the versions of the catalog, newest first: when, by which job, what was added and removed.

    Example: speechclip history --store S
    """
    from speechclip.store import FeatureStore

    store = FeatureStore(settings.need("store"))
    newest = store.snapshot().version
    found = list(itertools.islice(store.catalog.history(newest), limit))
    tags: dict[int, list[str]] = {}
    for tag in store.tags.readable():
        tags.setdefault(tag.version, []).append(tag.name)
    if as_json:
        rows = [
            {"version": entry.version, "time": entry.time, "note": entry.note, "tags": tags.get(entry.version, [])}
            for entry in found
        ]
        click.echo(msgspec.json.encode(rows))
        return
    figures = ("version", "stored", "rejected", "removed")
    columns = ("version", "when (UTC)", "what", "job", "feature set", "stored", "rejected", "removed", "tags")
    shown = table(*columns, figures=figures)
    for entry in found:
        operation, job = (entry.note.operation, entry.note.job) if entry.note else ("create", "")
        head = [str(entry.version), f"{entry.time:%Y-%m-%d %H:%M:%S}", operation, job]
        names = ", ".join(tags.get(entry.version, []))
        for part in entry.note.changes if entry.note and entry.note.changes else [None]:
            counts = (part.stored, part.rejected, part.removed) if part else (0, 0, 0)
            shown.add_row(*head, part.feature_set if part else "", *(f"{n:,}" if n else "" for n in counts), names)
            head, names = [""] * 4, ""
    console().print(shown)


@click.command()
@settings_options("store", "json")
@click.argument("name", required=False)
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Delete the tag. The version stays until `gc` deletes its files.")
def tag(settings: Settings, as_json: bool, name: str | None, version: str | None, delete: bool) -> None:
    """Give a version a name, so that `gc` keeps it for ever. Without NAME, list the tags.

    VERSION is a number; the newest by default.

    Example: speechclip tag paper --store S
    """
    from speechclip.store import FeatureStore

    if delete and name is None:
        raise click.UsageError("--delete needs the NAME of a tag")
    store = FeatureStore(settings.need("store"))
    store.check_exists()
    if name is None:
        tags, damaged = list(store.tags.readable()), [error for _, error in store.tags.damaged()]
        if as_json:
            click.echo(msgspec.json.encode(tags))
        elif tags or not damaged:
            _show_tags(tags)
        if damaged:
            raise damaged[0]
        return
    if delete:
        with contextlib.suppress(Damaged):
            store.tags.read(name)
        store.tags.delete(name)
        say(f"tag {name} is deleted")
        return
    snapshot = store.snapshot(version)
    # A version that cannot be read must not get a tag.
    snapshot.feature_sets()
    made = store.tags.create(name, snapshot.version)
    if as_json:
        click.echo(msgspec.json.encode(made))
    say(f"tag {made.name} names catalog version {made.version}; use it as --version {made.name}")


def _show_tags(tags: Sequence[Any]) -> None:
    shown = table("tag", "version", "since (UTC)", figures=("version",))
    for one in tags:
        shown.add_row(one.name, str(one.version), f"{one.time:%Y-%m-%d %H:%M:%S}")
    show(shown, "there is no tag yet; `speechclip tag NAME` makes one for the newest version")
