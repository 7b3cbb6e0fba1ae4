"""`speechclip export`: write stored features in the format of another tool."""

import click

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import counted, say
from speechclip.config import Settings


@click.group()
def export() -> None:
    """Write stored features in the format of another tool."""


@export.command(name="webdataset")
@settings_options("manifest", "store", "version")
@click.option(
    "--speech",
    "speech_set",
    metavar="SET",
    help="The feature set if several are stored: a fingerprint, its start, or an encoder name.",
)
@click.option("--image", "image_set", metavar="SET", help="The same for images.")
@click.option("--text", "text_set", metavar="SET", help="The same for texts.")
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Only this split. Repeatable.")
@click.option("--out", required=True, metavar="DIR", help="Write the tars here (path or s3://).")
def export_webdataset(
    settings: Settings,
    version: str | None,
    speech_set: str | None,
    image_set: str | None,
    text_set: str | None,
    splits: tuple[str, ...],
    out: str,
) -> None:
    """Write the features and the text of each utterance as one sample of WebDataset tars."""
    from speechclip.export import export_webdataset as write
    from speechclip.manifest import Manifest
    from speechclip.records import MODALITIES
    from speechclip.store import FeatureStore
    from speechclip.store.feature_sets import choose_feature_set

    snapshot = FeatureStore(settings.need("store")).snapshot(version)
    stored = {info.spec.modality for info in snapshot.feature_sets()}
    wanted = dict(zip(MODALITIES, (speech_set, image_set, text_set), strict=True))
    chosen = {
        kind: choose_feature_set(snapshot, kind, wanted[kind]).fingerprint for kind in MODALITIES if kind in stored
    }
    manifest = Manifest.read(settings.need("manifest"))
    for kind in MODALITIES:
        if kind not in chosen and manifest.assets(kind):
            say(f"note: no {kind} feature set is stored in catalog version {snapshot.version}; the tars have none")
    done = write(snapshot, manifest.select(splits) if splits else manifest, chosen, out)
    written = f"{counted(done.num_utterances, 'utterance')} in {counted(len(done.shards), 'shard')}"
    say(f"{out}: {written}; {done.num_left_out:,} without a feature")
