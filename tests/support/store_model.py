"""What a store should hold, in plain dicts: the model beside which `store/test_machine.py` runs a real one."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from speechclip.records import Asset, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.store.codec import codec_of
from support.feature_sets import FRAMES_SPEC, VECTORS_SPEC

FRAMES = msgspec.structs.replace(FRAMES_SPEC, width=2, layers=(0, 1))
VECTORS = msgspec.structs.replace(VECTORS_SPEC, width=3)
SPECS = {spec.fingerprint: spec for spec in (FRAMES, VECTORS)}
KEYS = [f"k{n}" for n in range(6)]
MANIFESTS = ("m1", "m2")


def _task(spec: EncoderSpec, name: str, keys: Sequence[int], matrix: str = "", first_row: int = 0) -> Task:
    assets = tuple(Asset(key=KEYS[key], modality=spec.modality) for key in keys)
    return Task(id=name, feature_set=spec.fingerprint, assets=assets, matrix=matrix, first_row=first_row)


# Tasks of several plans: a key is in more than one, as when two drivers or two corpora overlap.
TASKS = {
    task.id: task
    for task in (
        _task(FRAMES, "f0", [0, 1, 2]),
        _task(FRAMES, "f1", [2, 3]),
        _task(FRAMES, "f2", [0, 3, 4, 5]),
        _task(VECTORS, "v0", [0, 1], "p-4x2", 0),
        _task(VECTORS, "v1", [2, 3], "p-4x2", 2),
        _task(VECTORS, "v2", [0, 2, 4], "q-3x3", 0),
    )
}


def feature(spec: EncoderSpec, key: str, machine: int) -> np.ndarray:
    """What an encoder makes of that asset; on another machine it differs a little, so that it shows whose is read."""
    number = int(key[1:])
    shape = (len(spec.layers), 1 + number % 3, spec.width) if spec.is_frames else (spec.width,)
    return np.full(shape, number + machine / 1024, codec_of(spec).dtype)


@dataclass(frozen=True)
class Written:
    """A receipt, the features that really lie in the files that it names, and the day on which they were put there."""

    receipt: Receipt
    features: Mapping[str, bytes]
    files: tuple[str, ...]
    day: float


@dataclass(frozen=True)
class Row:
    """A row of the catalog, with the feature that it leads to."""

    asset: str
    version: int
    task: str
    shard: str | None = None
    feature: bytes | None = None
    files: tuple[str, ...] = ()
    reason: str | None = None
    source: str | None = None
    manifest: str | None = None

    @property
    def scope(self) -> tuple[str, str | None, str | None]:
        """Within it one row counts."""
        return self.asset, self.manifest, self.source

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The lowest counts."""
        return self.reason is not None, self.version if self.reason is None else -self.version, self.task

    @property
    def place(self) -> str:
        """Which shard or chunk it leads to."""
        return f"{self.task} {self.shard}" if self.shard else ""


Rows = Mapping[str, tuple[Row, ...]]


@dataclass(frozen=True)
class Version:
    """One version of the catalog: its rows by feature set, and the files of the table that it names."""

    rows: Rows
    parts: frozenset[str]

    def data_files_of(self, name: str) -> set[str]:
        return {path for path in self.parts if path.startswith(f"feature_set={name}/")}

    def files(self) -> set[str]:
        """Every file that this version needs."""
        named = {f"{place}/{part}" for part in self.parts for place in ("catalog", "journal")}
        return named | {path for rows in self.rows.values() for row in rows for path in row.files}


def picked(rows: Iterable[Row]) -> list[Row]:
    """The rows that a reader sees."""
    best: dict[tuple[str, str | None, str | None], Row] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        best.setdefault(row.scope, row)
    return list(best.values())


def stored(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.asset: row for row in picked(rows) if row.feature is not None}


def content(rows: Rows) -> dict[tuple[str, str], bytes | None]:
    """Every feature's bytes."""
    return {(name, key): row.feature for name in rows for key, row in stored(rows[name]).items()}


def rejections(rows: Iterable[Row], manifest: str) -> set[tuple[str, str | None, str | None, int]]:
    """What is rejected and not stored: by its bytes, or by a source of this manifest."""
    chosen = [row for row in picked(rows) if row.feature is None and row.manifest in (None, manifest)]
    there = stored(rows)
    return {(row.asset, row.reason, row.source, row.version) for row in chosen if row.asset not in there}


def with_receipts(
    rows: Rows, works: Sequence[Written], version: int, manifest: str, damaged: Collection[str] = ()
) -> Rows | None:
    """After a commit; None where it has nothing to say.

    What it stores of the damaged keys takes their place, unless they were dropped meanwhile.
    """
    after, added = dict(rows), _added(works, version, manifest)
    for name, new in added.items():
        there = {row.asset for row in rows.get(name, ())}
        taken = [row for row in new if row.asset in there or row.asset not in damaged]
        anew = {row.asset for row in taken if row.feature is not None and row.asset in damaged}
        if taken:
            after[name] = (*(row for row in rows.get(name, ()) if row.asset not in anew), *taken)
    return None if after == rows else after


def without(rows: Rows, doomed: Mapping[str, Collection[str] | None]) -> Rows | None:
    """After a drop; None where nothing of it was there."""
    after = dict(rows)
    for name in doomed.keys() & rows.keys():
        keys = doomed[name]
        after[name] = tuple(row for row in rows[name] if keys is not None and row.asset not in keys)
    after = {name: left for name, left in after.items() if left}
    return None if after == rows else after


def places_of(rows: Iterable[Row], keys: Collection[str]) -> set[str]:
    """Where these keys are stored, picked or not."""
    return {row.place for row in rows if row.place and row.asset in keys}


def worth_keeping(rows: Iterable[Row]) -> list[Row]:
    """What a compaction keeps: the picked, and what else is stored in the same shards and chunks."""
    there = list(rows)
    best = picked(there)
    shared = {row.place for row in best if row.place}
    return best + [row for row in there if row not in best and row.place in shared]


def compacted(now: Version, begun: Version, number: int) -> Rows | None:
    """After a compaction from two files on; None where no feature set has as many.

    It began at `begun`, the version of that number; where all its files are still there, the newer ones are left alone.
    """
    after = dict(now.rows)
    for name, rows in now.rows.items():
        there, first = now.data_files_of(name), begun.data_files_of(name)
        is_late = len(first) > 1 and first <= there
        if is_late or len(there) > 1:
            newer = [row for row in rows if is_late and row.version > number]
            after[name] = (*worth_keeping(row for row in rows if row not in newer), *newer)
    return after if any(len(now.data_files_of(name)) > 1 for name in after) else None


def _added(works: Sequence[Written], version: int, manifest: str) -> dict[str, list[Row]]:
    added: dict[str, list[Row]] = {}
    for work in works:
        rows = _rows(work, version, manifest)
        if rows:
            added.setdefault(work.receipt.feature_set, []).extend(rows)
    return added


def _rows(work: Written, version: int, manifest: str) -> list[Row]:
    receipt = work.receipt
    rows = [
        Row(asset=key, version=version, task=receipt.task, shard=receipt.shard, feature=data, files=work.files)
        for key, data in work.features.items()
    ]
    return rows + [
        Row(
            asset=entry.key,
            version=version,
            task=receipt.task,
            reason=entry.reason,
            source=entry.source,
            manifest=None if entry.source is None else manifest,
        )
        for entry in receipt.rejected
    ]
