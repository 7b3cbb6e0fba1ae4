"""Write the features of each utterance into WebDataset tars, so that other tools can read them without this package."""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import webdataset

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import MODALITIES, Modality
from speechclip.storage import Storage
from speechclip.store import Frames, Snapshot, Vectors

SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how many utterances it left out because one of their features is not stored."""

    num_utterances: int
    num_left_out: int
    shards: tuple[str, ...]


def export_webdataset(
    snapshot: Snapshot,
    manifest: Manifest,
    feature_sets: Mapping[Modality, str],
    out: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write `<out>/shard-000000.tar` and so on, in the manifest's order. `out` is a folder or an `s3://` address.

        export_webdataset(snapshot, manifest, {"speech": "hubert-base-ls960-3f2a91c04b7d"}, "s3://bucket/tars")

    `feature_sets` maps a modality to the fingerprint to export. A sample has `speech.npy` (layers, frames, width),
    `image.npy` and `text.npy` (width,) of these, `txt`, and `json` with the manifest's row. A new tar begins once
    `shard_bytes` of features are in one. Each tar is written whole or not at all, and equal exports are equal bytes.
    `InvalidInput` if a tar of that name exists.
    """
    opened = {modality: snapshot.feature_set(fingerprint) for modality, fingerprint in feature_sets.items()}
    storage, shards, num_written = Storage(out), [], 0
    for number, samples in enumerate(_cut(_samples(manifest, opened), shard_bytes)):
        buffer = io.BytesIO()
        # No time and no owner, so that equal exports are equal bytes.
        with webdataset.TarWriter(buffer, mtime=0, user="", group="") as tar:
            for sample in samples:
                tar.write(sample)
        shards.append(f"shard-{number:06d}.tar")
        if not storage.create(shards[-1], buffer.getvalue()):
            raise InvalidInput(f"{storage.address(shards[-1])}: exists already", "export into an empty folder")
        num_written += len(samples)
    return Exported(num_written, len(manifest) - num_written, tuple(shards))


def _samples(manifest: Manifest, opened: dict[Modality, Frames | Vectors]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(manifest.rows()):
        keys = {modality: row[f"{modality}_key"] for modality in MODALITIES if modality in opened}
        if all(keys[modality] in opened[modality] for modality in keys):
            # A reader takes all that follows the first dot for the ending, and a slash for a folder.
            name = f"{number:09d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', row['utterance'])[:60]}"
            arrays = {f"{modality}.npy": opened[modality][key] for modality, key in keys.items()}
            yield {"__key__": name, **arrays, "txt": row["text"] or "", "json": row}


def _cut(samples: Iterator[dict[str, Any]], shard_bytes: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += sum(value.nbytes for name, value in sample.items() if name.endswith(".npy"))
        if size >= shard_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group
