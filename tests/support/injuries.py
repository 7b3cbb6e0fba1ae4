"""A small real store with a past, and injuries to its files, such as disks, people and half-done copies make them."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.featurization.driver import GroupCommitter, Work, commit_receipts, encode_inline, prepare_work
from speechclip.featurization.plan import TaskSizes
from speechclip.manifest import Manifest
from speechclip.records import Receipt
from speechclip.store import FeatureStore
from speechclip.store.codec import stored_bytes
from speechclip.store.layout import (
    COLLECTIONS,
    LAST_CHECKPOINT,
    MANIFESTS,
    STORE_FILE,
    data_file_copy_path,
    data_file_path,
    journal_path,
    spec_path,
    sums_path,
    tag_path,
)
from speechclip.store.matrices import METADATA, chunk_path
from speechclip.store.shard_layout import member_places, sums_length
from speechclip.store.shards import pack_shard, write_shard
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.live import files_of_rows
from support.feature_sets import content
from support.stores import TOY

KINDS = (
    "shard", "checksums", "vectors", "keys", "metadata", "part", "copy", "log", "checkpoint", "last checkpoint",
    "journal", "spec", "store", "manifest", "tag", "collection",
)  # fmt: skip
HOWS = ("flip", "truncate", "delete", "empty")
SIZES = TaskSizes(shard_items=2, chunk_rows=2)
TAG = "paper"

Content = dict[tuple[str, str], bytes]
# Ranges of bytes [start, end).
Extents = dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Injury:
    """One file of a store changed: bit `position` flipped, cut to `position` bytes, or deleted."""

    kind: str
    path: str
    how: str
    position: int = 0

    def inflict(self, uri: str) -> None:
        """Do it to the store at `uri`, without touching other links to the same file."""
        file = Path(uri) / self.path
        data = bytearray(file.read_bytes())
        file.unlink()
        if self.how == "flip":
            data[self.position // 8] ^= 1 << self.position % 8
            file.write_bytes(data)
        elif self.how == "truncate":
            file.write_bytes(data[: self.position])

    def touches(self, extents: Extents) -> bool:
        """Whether some byte of these ranges of the file is changed or gone."""
        ranges = extents.get(self.path, [])
        match self.how:
            case "flip":
                return any(start <= self.position // 8 < end for start, end in ranges)
            case "truncate":
                return any(self.position < end for _, end in ranges)
            case _:
                return bool(ranges)


@dataclass(frozen=True)
class Patient:
    """A whole store, what it must always give, and the corpus it was made from.

    `named` and `unnamed` are the bytes, in shards and beside them, of features that the newest or the tagged version
    names, and of those that none does.
    """

    uri: str
    corpus: Path
    head: Content
    tagged: Content
    files: dict[str, list[str]]
    named: Extents
    unnamed: Extents
    newest: int
    tagged_version: int

    def copy(self, target: Path) -> str:
        """The same store at another place, of links to the same files: a store never changes a file in place."""
        shutil.copytree(self.uri, target, copy_function=os.link)
        return str(target)

    def injury(self, kind: str, how: str, chance: Random, among: Sequence[str] = ()) -> Injury:
        """Such an injury to some file of that kind, or of these, at some place in it."""
        path = chance.choice(among or self.files[kind])
        size = (Path(self.uri) / path).stat().st_size
        if how == "empty":
            return Injury(kind, path, "truncate", 0)
        if how == "truncate" or chance.random() < 0.5 or not self.named.get(path):
            return Injury(kind, path, how, chance.randrange(8 * size if how == "flip" else size))
        # Else it might hit a header, or what no version names, too often.
        start, end = chance.choice(self.named[path])
        return Injury(kind, path, how, chance.randrange(8 * start, 8 * end))

    def twins(self, kinds: tuple[str, str], chance: Random) -> list[Injury]:
        """An injury of each kind, to the same thing where both kinds have one: a file and its copy."""
        # A tag that is gone was never there.
        first = self.injury(kinds[0], chance.choice(HOWS[:2] if kinds[0] == "tag" else HOWS), chance)
        name = Path(first.path).name.partition(".")[0]
        same = [path for path in self.files[kinds[1]] if name in path] or self.files[kinds[1]]
        return [first, self.injury(kinds[1], chance.choice(HOWS), chance, same)]

    def is_visible(self, injury: Injury) -> bool:
        """Whether `verify` must report it: the exceptions of docs/store.md."""
        if injury.how == "delete" and injury.kind in ("journal", "manifest", "tag", "collection"):
            return injury.kind == "journal" and injury.path != journal_path(self.newest)
        return injury.kind == "vectors" or injury.how != "flip" or not injury.touches(self.unnamed)

    def is_vital(self, injury: Injury) -> bool:
        """Whether some reader must stumble over it: what it needs has changed."""
        match injury.kind:
            case "vectors" | "part" | "spec" | "store" | "tag":
                return True
            case "collection":
                return injury.how != "delete"
            case "shard" | "checksums":
                return injury.touches(self.named)
            case "journal":
                used = (journal_path(self.newest), journal_path(self.tagged_version))
                return injury.how != "delete" and injury.path in used
            case _:
                return False


def make_patient(folder: Path) -> Patient:
    """A store of several shards, chunks and commits, with a tag, a compaction, a drop and a gc in its past.

    Shorten `catalog.CHECKPOINT_EVERY` first: then it has checkpoints too.
    """
    corpus = make_synthetic(folder / "corpus", num_concepts=4, num_voices=2)
    next((corpus.parent / "audio").glob("*.flac")).write_bytes(b"no recording")
    table, uri = read_table(str(corpus)).table, str(folder / "store")
    store = FeatureStore(uri)
    featurize(store, Manifest(table[:4]))
    tagged = store.snapshot()
    store.tags.create(TAG, tagged.version)
    featurize(store, Manifest(table[:6]))
    store.compact(2)
    sets = [info.fingerprint for info in store.snapshot().feature_sets()]
    store.drop({name: sorted(store.snapshot().stored_keys(name))[::3] for name in sets})
    featurize(store, Manifest(table[5:]))
    delete_unused(store)
    head = store.snapshot()
    named, unnamed = extents(store, sets, head.version, tagged.version)
    return Patient(
        uri, corpus, content(head), content(tagged), files_by_kind(store, sets), named, unnamed, head.version,
        tagged.version,
    )  # fmt: skip


def featurize(
    store: FeatureStore, manifest: Manifest, encode: Callable[[Work], Iterator[Receipt]] = encode_inline
) -> int:
    """A run without Ray in many commits; how many it encoded."""
    work = prepare_work(store, manifest, [(request, request.build().spec) for request in TOY], SIZES)
    committer = GroupCommitter(work, group_size=2)
    commit_receipts(encode(work), committer)
    return committer.summary().encoded


def files_by_kind(store: FeatureStore, sets: list[str]) -> dict[str, list[str]]:
    """The files that the newest and the tagged version name, and those through which they are found."""
    snapshots = [store.snapshot(), store.snapshot(TAG)]
    named = {path for snapshot in snapshots for name in sets for path in files_of_rows(snapshot.stored(name))}
    parts = {path for snapshot in snapshots for path in store.catalog.paths(snapshot.version)}
    matrices = {path.rpartition(".zarr/")[0] + ".zarr" for path in named if ".zarr/" in path}
    log = [path for path in store.storage.list("catalog/_delta_log") if path != LAST_CHECKPOINT]
    found = {
        "shard": {path for path in named if path.endswith(".tar")},
        "checksums": {path for path in named if path.endswith(".xxh3")},
        "vectors": {path for path in named if "/vectors/c/" in path},
        "keys": {path for path in named if "/keys/c/" in path},
        "metadata": {f"{matrix}/{name}" for matrix in matrices for name in METADATA},
        "part": set(map(data_file_path, parts)),
        "copy": set(map(data_file_copy_path, parts)),
        "log": {path for path in log if path.endswith(".json")},
        "checkpoint": {path for path in log if path.endswith(".parquet")},
        "last checkpoint": {LAST_CHECKPOINT},
        "journal": set(map(journal_path, range(snapshots[0].version + 1))),
        "spec": set(map(spec_path, sets)),
        "store": {STORE_FILE},
        "manifest": set(store.storage.list(MANIFESTS)),
        "tag": {tag_path(TAG)},
        "collection": set(store.storage.list(COLLECTIONS)),
    }
    assert set(found) == set(KINDS)
    assert all(found.values())
    return {kind: sorted(paths) for kind, paths in found.items()}


def extents(store: FeatureStore, sets: list[str], *live: int) -> tuple[Extents, Extents]:
    """Where the arrays lie, and their checksums: of features that one of these versions names, and of the others."""
    named, unnamed = defaultdict[str, list[tuple[int, int]]](list), defaultdict[str, list[tuple[int, int]]](list)
    for name in sets:
        spec = store.read_spec(name).spec
        rows = [store.snapshot(version).stored(name).to_pylist() for version in range(max(live) + 1)]
        places = {(row["asset"], row["shard"]) for version in live for row in rows[version]}
        for row in (row for found in rows for row in found):
            found = named if (row["asset"], row["shard"]) in places else unnamed
            if not spec.is_frames:
                row_bytes, (chunk, place) = stored_bytes(spec, 0), divmod(row["offset"], SIZES.chunk_rows)
                path = chunk_path(row["shard"], "vectors", chunk * SIZES.chunk_rows)
                found[path].append((place * row_bytes, (place + 1) * row_bytes))
                continue
            (place,) = member_places(spec, row["num_frames"])
            num_bytes = len(spec.layers) * place.layer_bytes
            found[row["shard"]].append((row["offset"], row["offset"] + num_bytes))
            end = row["sums_offset"] + sums_length(spec, row["num_frames"])
            found[sums_path(row["shard"])].append((row["sums_offset"], end))
    return dict(named), dict(unnamed)


def forge(store: FeatureStore, name: str, key: str, factor: float) -> None:
    """Change a stored frame feature with all of its checksums, as a wrong library or a person would."""
    spec = store.read_spec(name).spec
    array = store.snapshot().feature_set(name)[key] * np.float32(factor)
    tar = pack_shard(spec, [(key, array)], {})
    path, stored = write_shard(store.storage, spec, "forged", tar, [key])
    receipt = Receipt(
        task="forged", feature_set=name, shard=path, stored=stored, rejected=(), num_bytes=len(tar), seconds=1.0,
        num_encoded=1,
    )  # fmt: skip
    store.commit([receipt], "m", damaged={name: [key]})
