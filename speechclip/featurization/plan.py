"""The plan: the assets of a manifest that have no feature yet, cut into tasks.

The plan is kept in the store, so that a later job continues it and its shards get the same names.
"""

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from speechclip.errors import Damaged
from speechclip.featurization.plan_file import from_parquet, to_parquet
from speechclip.manifest import Manifest
from speechclip.records import Asset, Modality, Record, Task
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.codec import stored_bytes
from speechclip.store.layout import plan_path
from speechclip.store.matrices import KEY_BYTES, Shape, create_matrix, matrix_name, shape_of

logger = logging.getLogger(__name__)

# What a shard needs for an asset beside its array: two tar headers, NumPy's header, and the notes in JSON, each padded
# to a multiple of 512.
MEMBER_BYTES = 2560


Positive = Annotated[int, msgspec.Meta(ge=1)]


class TaskSizes(Record, frozen=True):
    """How much goes into one task. Changes speed and the sizes of objects, never a feature."""

    shard_bytes: Positive = 128 << 20
    shard_items: Positive = 1024
    chunk_rows: Positive = 512


@dataclass(frozen=True)
class Coverage:
    """How much of one feature set a snapshot holds for a manifest.

    `num_planned` is the number of different assets, and of sources that ingest could not read. It equals
    `num_stored + num_rejected + len(missing)`.
    """

    spec: EncoderSpec
    num_planned: int
    num_stored: int
    num_rejected: int
    missing: tuple[Asset, ...] = field(repr=False)

    @property
    def missing_seconds(self) -> float:
        """Seconds of speech that are left to encode."""
        return sum(self.spec.encoded_seconds(asset.seconds) for asset in self.missing)

    def remaining_bytes(self, sizes: TaskSizes) -> int:
        """Bytes that a job will write for the missing assets."""
        return sum(task_bytes(self.spec, task) for task in cut_missing("plan", self, sizes))

    def remaining_objects(self, sizes: TaskSizes) -> int:
        """Objects that a job will write: two for each task."""
        return 2 * len(cut_missing("plan", self, sizes))


def cover(manifest: Manifest, spec: EncoderSpec, snapshot: Snapshot | None, retry: Collection[str] = ()) -> Coverage:
    """How much of this feature set the snapshot holds for the manifest. None stands for an empty store.

    An asset that was rejected for a reason in `retry` counts as missing.
    """
    assets = manifest.assets(spec.modality)
    problems = manifest.source_problems(spec.modality)
    stored, rejected = _known(spec.fingerprint, manifest, snapshot, retry)
    num_stored = sum(asset.key in stored for asset in assets)
    missing = tuple(asset for asset in assets if asset.key not in stored and asset.key not in rejected)
    num_rejected = len(assets) - num_stored - len(missing) + len(problems)
    return Coverage(spec, len(assets) + len(problems), num_stored, num_rejected, missing)


def cut(
    spec: EncoderSpec, assets: Sequence[Asset], sizes: TaskSizes, name: str = "plan", matrix: str = ""
) -> list[Task]:
    """The assets in tasks of full size, in the order in which they are given.

    A task of frames has at most `shard_items` assets and, unless it has only one, `shard_bytes`. A task of vectors has
    `chunk_rows` assets.
    """
    groups: list[list[Asset]] = []
    num_bytes = 0
    for asset in assets:
        size = stored_bytes(spec, asset.seconds)
        limit = sizes.shard_items if spec.is_frames else sizes.chunk_rows
        is_full = not groups or len(groups[-1]) >= limit or (spec.is_frames and num_bytes + size > sizes.shard_bytes)
        if is_full:
            groups.append([])
            num_bytes = 0
        groups[-1].append(asset)
        num_bytes += size
    return [
        Task(
            id=f"{name}-{number:06d}",
            feature_set=spec.fingerprint,
            assets=tuple(group),
            matrix=matrix,
            first_row=0 if spec.is_frames else number * sizes.chunk_rows,
        )
        for number, group in enumerate(groups)
    ]


def cut_missing(plan_id: str, part: Coverage, sizes: TaskSizes) -> list[Task]:
    """The missing assets of a feature set as tasks of that plan."""
    digest = part.spec.fingerprint.rpartition("-")[2]
    matrix = "" if part.spec.is_frames else matrix_name(plan_id, Shape(len(part.missing), sizes.chunk_rows))
    return cut(part.spec, part.missing, sizes, name=f"{plan_id}-{digest[:6]}", matrix=matrix)


def task_bytes(spec: EncoderSpec, task: Task) -> int:
    """Bytes that the task will write: arrays, tar headers and notes of a shard, or a whole chunk with its keys."""
    if spec.is_frames:
        return sum(stored_bytes(spec, asset.seconds) + MEMBER_BYTES for asset in task.assets)
    return shape_of(task.matrix).chunk_rows * (stored_bytes(spec, 0) + KEY_BYTES)


@dataclass(frozen=True)
class Amount:
    """How much work some tasks are. `num_bytes` is what they will write, `seconds` the length of their recordings."""

    num_tasks: int = 0
    num_assets: int = 0
    seconds: float = 0.0
    num_bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.num_tasks + other.num_tasks,
            self.num_assets + other.num_assets,
            self.seconds + other.seconds,
            self.num_bytes + other.num_bytes,
        )


@dataclass(frozen=True)
class Plan:
    """A stored plan: the amount of work that is left, and an iterator over the tasks that no commit holds yet.

    `num_settled` tasks need nothing more. Take the tasks one after the other and keep none of them: a plan of a large
    corpus may not fit into memory.
    """

    id: str
    num_settled: int
    by_feature_set: Mapping[str, Amount]
    by_modality: Mapping[Modality, Amount]
    _tasks: Sequence[Task] = field(repr=False)

    @classmethod
    def of(cls, plan_id: str, tasks: Sequence[Task], specs: Mapping[str, EncoderSpec], num_settled: int = 0) -> "Plan":
        """The plan of these tasks; `specs` holds the spec of each feature set by its fingerprint."""
        by_feature_set: dict[str, Amount] = {}
        by_modality: dict[Modality, Amount] = {}
        for task in tasks:
            name, spec = task.feature_set, specs[task.feature_set]
            amount = Amount(1, len(task.assets), sum(asset.seconds for asset in task.assets), task_bytes(spec, task))
            by_feature_set[name] = by_feature_set.get(name, Amount()) + amount
            by_modality[spec.modality] = by_modality.get(spec.modality, Amount()) + amount
        return cls(plan_id, num_settled, by_feature_set, by_modality, tasks)

    @property
    def total(self) -> Amount:
        """All that is left."""
        return sum(self.by_modality.values(), Amount())

    @property
    def num_tasks(self) -> int:
        """Tasks that are left."""
        return self.total.num_tasks

    def tasks(self, feature_set: str | None = None) -> Iterator[Task]:
        """The tasks that are left, in order; with `feature_set` only those of that fingerprint."""
        return (task for task in self._tasks if feature_set in (None, task.feature_set))

    def __iter__(self) -> Iterator[Task]:
        return self.tasks()


def open_plan(
    store: FeatureStore, manifest: Manifest, coverage: Sequence[Coverage], snapshot: Snapshot, sizes: TaskSizes
) -> Plan:
    """The plan of what is missing: the stored plan of this manifest and these specs, or a new one.

    A stored plan keeps its task sizes. So a job that continues makes the shards that the first job would have made.
    """
    missing = {part.spec.fingerprint: {asset.key: asset for asset in part.missing} for part in coverage}
    if not any(missing.values()):
        return Plan.of("", (), {})
    identity = hashlib.sha256("\n".join([manifest.digest, *sorted(missing)]).encode()).hexdigest()[:12]
    for ordinal in range(10_000):
        plan_id = f"{identity}-{ordinal:04d}"
        if store.storage.size(plan_path(plan_id)) is None:
            tasks = [task for part in coverage for task in cut_missing(plan_id, part, sizes)]
            # If two drivers race, the first file stays, and both drivers follow it.
            store.storage.create(plan_path(plan_id), to_parquet(tasks))
        try:
            tasks = from_parquet(store.storage.read(plan_path(plan_id)))
        except Damaged as error:
            # The catalog knows what was committed. The rest goes into a new plan.
            logger.warning("%s: %s; a new plan takes its place", plan_path(plan_id), error.problem)
            continue
        open_tasks = _open_tasks(tasks, snapshot, missing)
        covered: dict[str, set[str]] = {name: set() for name in missing}
        for task in open_tasks:
            covered[task.feature_set].update(asset.key for asset in task.assets)
        if all(wanted.keys() <= covered[name] for name, wanted in missing.items()):
            specs = {part.spec.fingerprint: part.spec for part in coverage}
            for name, matrix in {(task.feature_set, task.matrix) for task in tasks if task.matrix}:
                # Write the metadata with the final shape before any task writes its chunk.
                create_matrix(store.storage, specs[name], matrix)
            return Plan.of(plan_id, open_tasks, specs, len(tasks) - len(open_tasks))
    raise AssertionError("ten thousand plans of one manifest")


def _known(
    fingerprint: str, manifest: Manifest, snapshot: Snapshot | None, retry: Collection[str]
) -> tuple[set[str], set[str]]:
    """The keys that are stored, and those that are rejected for a reason that is not in `retry`."""
    if snapshot is None:
        return set(), set()
    rejections = snapshot.rejections(fingerprint, manifest.digest).select(["asset", "reason"]).to_pylist()
    # An asset may be rejected by its source and by its bytes. Either reason is enough to retry it.
    retried = {row["asset"] for row in rejections if row["reason"] in retry}
    return snapshot.stored_keys(fingerprint), {row["asset"] for row in rejections} - retried


def _open_tasks(tasks: Sequence[Task], snapshot: Snapshot, missing: dict[str, dict[str, Asset]]) -> tuple[Task, ...]:
    """The tasks that are not committed and still have a missing asset. A task of frames keeps only those assets."""
    done = {name: snapshot.committed_tasks(name) for name in missing}
    open_tasks = []
    for task in tasks:
        known = missing[task.feature_set]
        # Use the records of the manifest, not the equal ones of the plan, so that memory holds each only once.
        assets = tuple(known.get(asset.key, asset) for asset in task.assets)
        wanted = tuple(asset for asset in assets if asset.key in known)
        if wanted and task.id not in done[task.feature_set]:
            # A chunk of vectors keeps all its rows, because each row has a fixed place.
            open_tasks.append(msgspec.structs.replace(task, assets=assets if task.matrix else wanted))
    return tuple(open_tasks)
