"""Featurize: the open plan, its receipts, their commits and the ledger; free of Ray, which only carries the tasks.

The ledger adds up: planned = stored before + encoded + rejected + missing, each unique (feature set, asset) pair or
unreadable source counted once.
"""

import functools
import logging
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from speechclip.errors import LostRace, WorkLeft
from speechclip.featurization.plan import Coverage, Plan, TaskSizes, cover, open_plan
from speechclip.featurization.tasks import BatchSizes, EncoderRequest, TaskEncoder, decode_task
from speechclip.manifest import Manifest
from speechclip.records import Receipt, Record
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore

logger = logging.getLogger(__name__)

COMPACT_ATTEMPTS = 5


def new_job() -> str:
    """A name for one run, as `speechclip history` shows it: when it began, and six hex digits of chance."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Work:
    """Everything a driver needs: the store, the manifest, what was found missing, and the open plan."""

    store: FeatureStore
    manifest: Manifest
    requests: Mapping[str, EncoderRequest]
    specs: Mapping[str, EncoderSpec]
    before: tuple[Coverage, ...]
    plan: Plan
    job: str = field(default_factory=new_job)

    @functools.cached_property
    def wanted(self) -> set[tuple[str, str]]:
        """The (feature set, asset) pairs that were missing."""
        return {(part.spec.fingerprint, asset.key) for part in self.before for asset in part.missing}


def survey(store: FeatureStore, manifest: Manifest, specs: Iterable[EncoderSpec]) -> tuple[Coverage, ...]:
    """What the manifest asks of each encoder and what the store has of it now; changes nothing."""
    snapshot = store.newest()
    return tuple(cover(manifest, spec, snapshot) for spec in specs)


def prepare_work(
    store: FeatureStore,
    manifest: Manifest,
    encoders: Sequence[tuple[EncoderRequest, EncoderSpec]],
    sizes: TaskSizes,
    retry: Collection[str] = (),
) -> Work:
    """Make the store if need be, keep specs and manifest in it, and open the plan of what is missing or to retry."""
    store.create()
    for request, spec in encoders:
        store.add_spec(spec, request.encoder_name)
    store.add_manifest(manifest)
    # A compaction would take the number of a version that is lost.
    store.snapshot().check_tags()
    try:
        store.compact(attempts=COMPACT_ATTEMPTS)
    except LostRace as error:
        # It only saves readers time; whoever comes first next time makes up for it.
        logger.info("the catalog is not compacted now: %s", error)
    snapshot = store.snapshot()
    before = tuple(cover(manifest, spec, snapshot, retry) for _, spec in encoders)
    plan = open_plan(store, manifest, before, snapshot, sizes)
    requests = {spec.fingerprint: request for request, spec in encoders}
    return Work(store, manifest, requests, {spec.fingerprint: spec for _, spec in encoders}, before, plan)


class Summary(Record, frozen=True):
    """The last line of a run. planned = stored_before + encoded + rejected + missing.

    Of the plan's tasks, `tasks_skipped` needed nothing more before, and `tasks_failed` still have no receipt.
    """

    job: str = msgspec.field(name="run")
    tasks_done: int
    tasks_skipped: int
    tasks_failed: int
    planned: int
    stored_before: int
    encoded: int
    rejected: int
    missing: int
    bytes: int
    seconds: float
    catalog_version: int


@dataclass
class Committer:
    """Commits receipts in groups: every `group_seconds`, or every `group_size` of them."""

    work: Work
    # A commit costs the same for one receipt and for hundreds, and on S3 asks for every entry since the checkpoint.
    group_size: int = 256
    group_seconds: float = 20.0
    _pending: list[Receipt] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _since: float = field(default_factory=time.monotonic)
    encoded: set[tuple[str, str]] = field(default_factory=set)  # (feature set, key) of all that was committed
    _num_bytes: int = 0
    _num_tasks: int = 0

    def add(self, receipt: Receipt) -> None:
        """Take a receipt; it counts once its group is committed."""
        self._pending.append(receipt)
        if len(self._pending) >= self.group_size or time.monotonic() - self._since > self.group_seconds:
            self.flush()

    def flush(self) -> None:
        """Commit what is pending."""
        if self._pending:
            work = self.work
            work.store.commit(self._pending, work.manifest.digest, job=work.job)
            self.encoded |= {(receipt.feature_set, entry.key) for receipt in self._pending for entry in receipt.stored}
            self._num_bytes += sum(receipt.num_bytes for receipt in self._pending)
            self._num_tasks += len(self._pending)
        self._pending, self._since = [], time.monotonic()

    def summary(self) -> Summary:
        """The ledger, read back from the newest snapshot."""
        snapshot = self.work.store.snapshot()
        after = [cover(self.work.manifest, part.spec, snapshot) for part in self.work.before]
        encoded = len(self.encoded & self.work.wanted)
        return Summary(
            job=self.work.job,
            tasks_done=self._num_tasks,
            tasks_skipped=self.work.plan.num_settled,
            tasks_failed=len(self.work.plan.tasks) - self._num_tasks,
            planned=sum(part.num_planned for part in after),
            stored_before=sum(part.num_stored for part in after) - encoded,
            encoded=encoded,
            rejected=sum(part.num_rejected for part in after),
            missing=sum(len(part.missing) for part in after),
            bytes=self._num_bytes,
            seconds=round(time.monotonic() - self._started, 3),
            catalog_version=snapshot.version,
        )


def commit_receipts(receipts: Iterable[Receipt], committer: Committer, *, max_rejected: float = 1.0) -> None:
    """Commit the receipts as they come; whatever ends the run, what has come is committed.

    Raises `WorkLeft` once more than `max_rejected` (a share of what is planned) is rejected.
    """
    before = committer.work.before
    num_planned = sum(part.num_planned for part in before)
    num_before = sum(part.num_rejected for part in before)
    rejected: set[tuple[str, str]] = set()
    try:
        for receipt in receipts:
            # As the ledger counts: a task may also hold what is stored elsewhere.
            rejected |= {(receipt.feature_set, entry.key) for entry in receipt.rejected} & committer.work.wanted
            committer.add(receipt)
            stopped = "the run stopped and keeps what it encoded"
            _check_budget(num_before + len(rejected), num_planned, max_rejected, stopped)
    finally:
        committer.flush()
    _check_budget(num_before + len(rejected), num_planned, max_rejected, "nothing else was left to do")


def _check_budget(num_rejected: int, num_planned: int, max_rejected: float, what_else: str) -> None:
    if num_rejected > max_rejected * num_planned:
        raise WorkLeft(
            f"{num_rejected} of {num_planned} assets are rejected, more than --max-rejected {max_rejected:g} allows; "
            f"{what_else}; `speechclip rejected` lists the reasons, a higher share goes on"
        )


def encode_inline(work: Work, batch_sizes: BatchSizes = BatchSizes()) -> Iterator[Receipt]:  # noqa: B008 (frozen)
    """The receipts of all open tasks, made in this process one after the other, on its GPU if it has one."""
    loaded: dict[str, TaskEncoder] = {}
    for task in work.plan.tasks:
        name = task.feature_set
        if name not in loaded:
            loaded[name] = TaskEncoder(work.requests[name].build("auto"), work.store.storage, batch_sizes)
        yield loaded[name](decode_task(task, work.specs[name]))


class Rejection(Record, frozen=True):
    """A source that has no feature, why, and who names it; no `feature_set` where ingest already could not read it."""

    feature_set: str
    utterances: tuple[str, ...]
    source: str
    reason: str
    detail: str


def list_rejected(store: FeatureStore, manifest: Manifest) -> list[Rejection]:
    """Every source of the manifest that has no feature and why: found at ingest, or by any feature set's run."""
    found = [
        Rejection(feature_set="", source=one.uri, utterances=one.utterances, reason=one.reason, detail=one.detail)
        for modality in ("speech", "image")
        for one in manifest.source_problems(modality)
    ]
    snapshot = store.newest()
    if snapshot is None:
        return found
    for info in snapshot.feature_sets():
        utterances = manifest.utterances(info.spec.modality)
        rows = snapshot.rejections(info.fingerprint, manifest.digest).to_pylist()
        # Of an asset's reasons one stands: by its bytes, or else the newest.
        standing = {row["asset"]: row for row in sorted(rows, key=lambda row: (row["source"] is None, row["version"]))}
        found += [
            Rejection(
                feature_set=info.fingerprint,
                utterances=utterances[asset.key],
                source=asset.uri or asset.text or "",
                reason=standing[asset.key]["reason"],
                detail=standing[asset.key]["detail"],
            )
            for asset in manifest.assets(info.spec.modality)
            if asset.key in standing
        ]
    return found
