"""The driver of a featurize job: make the plan, commit receipts, and count the ledger. It does not need Ray.

    work = prepare_work(store, manifest, encoders, TaskSizes())
    summary = featurize_work(work, encode_inline(work))

The ledger: planned = stored before + encoded + rejected + missing. It counts each pair of a feature set and an asset
once, and each source that could not be read once.
"""

import functools
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from speechclip.errors import LostRace, WorkLeft
from speechclip.featurization.plan import Coverage, Plan, TaskSizes, cover, open_plan
from speechclip.featurization.progress import FeaturizeProgress, Tally
from speechclip.featurization.tasks import BatchSizes, EncoderRequest, TaskEncoder, decode_task
from speechclip.manifest import Manifest
from speechclip.records import Receipt, Record
from speechclip.spec import EncoderSpec
from speechclip.status import Reporter
from speechclip.store import FeatureStore
from speechclip.store.layout import job_path

logger = logging.getLogger(__name__)

COMPACT_ATTEMPTS = 5


def new_job() -> str:
    """A name for a job: its start in UTC and six random hex digits, as in `20260131T120000-3f2a91`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Work:
    """All that a driver needs: the store, the manifest, what was missing before, and the plan.

    The keys of `requests` and `specs` are fingerprints. `before` has one entry for each feature set.
    """

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
    """How much of each encoder's features the store holds for this manifest. Changes nothing."""
    snapshot = store.newest()
    return tuple(cover(manifest, spec, snapshot) for spec in specs)


def prepare_work(
    store: FeatureStore,
    manifest: Manifest,
    encoders: Sequence[tuple[EncoderRequest, EncoderSpec]],
    sizes: TaskSizes,
    retry: Collection[str] = (),
) -> Work:
    """Create the store if there is none, add the specs and the manifest to it, and open the plan of what is missing.

    An asset that was rejected for a reason in `retry`, such as `source-missing`, counts as missing.
    """
    store.create()
    for request, spec in encoders:
        store.add_spec(spec, request.encoder_name)
    store.add_manifest(manifest)
    # A compaction makes a new version. It must not take the number of a version that is lost and has a tag.
    store.snapshot().check_tags()
    try:
        store.compact(attempts=COMPACT_ATTEMPTS)
    except LostRace as error:
        # Compaction only makes readers faster. The next job tries again.
        logger.info("the catalog is not compacted now: %s", error)
    snapshot = store.snapshot()
    before = tuple(cover(manifest, spec, snapshot, retry) for _, spec in encoders)
    plan = open_plan(store, manifest, before, snapshot, sizes)
    requests = {spec.fingerprint: request for request, spec in encoders}
    return Work(store, manifest, requests, {spec.fingerprint: spec for _, spec in encoders}, before, plan)


class Summary(Record, frozen=True):
    """The ledger of a job, which it prints as its last line. planned = stored_before + encoded + rejected + missing.

    `tasks_done` were committed by this job, `tasks_skipped` needed nothing more when it began, and `tasks_failed` have
    no receipt yet. `bytes` and `seconds` are of this job. `catalog_version` is the newest version at its end.
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
class GroupCommitter:
    """Commits receipts in groups and counts them: a group every `group_seconds`, or every `group_size` receipts.

    A commit takes as long for one receipt as for hundreds. On S3 it reads every log entry since the checkpoint.
    """

    work: Work
    group_size: int = 256
    group_seconds: float = 20.0
    _pending: list[Receipt] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _group_started: float = field(default_factory=time.monotonic)
    _encoded: set[tuple[str, str]] = field(default_factory=set)  # (feature set, key) of every committed feature
    _num_bytes: int = 0
    _num_tasks: int = 0

    def add(self, receipt: Receipt) -> None:
        """Take a receipt, and commit the group if it is full or old enough."""
        self._pending.append(receipt)
        if len(self._pending) >= self.group_size or time.monotonic() - self._group_started > self.group_seconds:
            self.flush()

    def flush(self) -> None:
        """Commit the receipts that are not committed yet."""
        if self._pending:
            work = self.work
            work.store.commit(self._pending, work.manifest.digest, job=work.job)
            self._encoded |= {(receipt.feature_set, entry.key) for receipt in self._pending for entry in receipt.stored}
            self._num_bytes += sum(receipt.num_bytes for receipt in self._pending)
            self._num_tasks += len(self._pending)
        self._pending, self._group_started = [], time.monotonic()

    def summary(self) -> Summary:
        """The ledger of the job, counted in the newest snapshot."""
        snapshot = self.work.store.snapshot()
        after = [cover(self.work.manifest, part.spec, snapshot) for part in self.work.before]
        encoded = len(self._encoded & self.work.wanted)
        return Summary(
            job=self.work.job,
            tasks_done=self._num_tasks,
            tasks_skipped=self.work.plan.num_settled,
            tasks_failed=self.work.plan.num_tasks - self._num_tasks,
            planned=sum(part.num_planned for part in after),
            stored_before=sum(part.num_stored for part in after) - encoded,
            encoded=encoded,
            rejected=sum(part.num_rejected for part in after),
            missing=sum(len(part.missing) for part in after),
            bytes=self._num_bytes,
            seconds=round(time.monotonic() - self._started, 3),
            catalog_version=snapshot.version,
        )


def featurize_work(
    work: Work,
    receipts: Iterable[Receipt],
    *,
    command: str = "featurize",
    must_be_whole: bool = True,
    max_rejected: float = 1.0,
    group_seconds: float = 20.0,
    progress_seconds: float = 10.0,
    on_progress: Callable[[FeaturizeProgress, bool], None] = lambda progress, is_last: None,
    on_summary: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Commit the receipts as they come, keep the job's status file up to date, and return the ledger.

    `receipts` is what `encode_inline` or `encode_on_ray` yields. If an error or a signal ends it early, the receipts
    that came before are committed. `on_progress` is called every `progress_seconds` by a thread, and a last time
    with `is_last`. `on_summary` is called once, also before an error is raised.

    Raises `WorkLeft` if too much is rejected (see `commit_receipts`), or if something is missing in the end and
    `must_be_whole`.
    """
    committer, tally = GroupCommitter(work, group_seconds=group_seconds), Tally(work.plan, work.specs)
    with Reporter(
        work.store.storage,
        job_path(work.job),
        job=work.job,
        command=command,
        look=tally.look if work.plan.num_tasks else lambda: None,
        show=on_progress,
        show_seconds=progress_seconds,
    ) as reporter:
        try:
            commit_receipts(tally.watch(receipts), committer, max_rejected=max_rejected)
        finally:
            summary = committer.summary()
            reporter.conclude(summary)
            on_summary(summary)
        if summary.missing and must_be_whole:
            raise WorkLeft(f"{summary.missing} assets are still missing", "run the same command again")
        return summary


def commit_receipts(receipts: Iterable[Receipt], committer: GroupCommitter, *, max_rejected: float = 1.0) -> None:
    """Commit the receipts in groups as they come. An error or a signal does not stop the last group's commit.

    Raises `WorkLeft` once more than `max_rejected` (a share of the planned assets, from 0 to 1) is rejected.
    """
    limit = _RejectionLimit.of(committer.work, max_rejected)
    try:
        for receipt in receipts:
            limit.count(receipt)
            committer.add(receipt)
            limit.check("the job stopped and keeps what it encoded")
    finally:
        committer.flush()
    limit.check("nothing else was left to do")


@dataclass
class _RejectionLimit:
    """Counts rejected assets in the way of the ledger, and raises `WorkLeft` when their share is too large."""

    max_rejected: float
    num_planned: int
    num_before: int
    wanted: Set[tuple[str, str]]
    rejected: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, work: Work, max_rejected: float) -> "_RejectionLimit":
        num_planned = sum(part.num_planned for part in work.before)
        return cls(max_rejected, num_planned, sum(part.num_rejected for part in work.before), work.wanted)

    def count(self, receipt: Receipt) -> None:
        # A task may also hold assets that another job stored. The ledger does not count them as rejected.
        self.rejected |= {(receipt.feature_set, entry.key) for entry in receipt.rejected} & self.wanted

    def check(self, what_else: str) -> None:
        num_rejected = self.num_before + len(self.rejected)
        if num_rejected > self.max_rejected * self.num_planned:
            raise WorkLeft(
                f"{num_rejected} of {self.num_planned} assets are rejected, more than --max-rejected "
                f"{self.max_rejected:g} allows; {what_else}",
                "see the reasons by `speechclip rejected`; run again with a larger --max-rejected to accept them",
            )


def encode_inline(work: Work, batch_sizes: BatchSizes = BatchSizes()) -> Iterator[Receipt]:  # noqa: B008 (frozen)
    """Yield the receipts of all open tasks. This process encodes one task after the other, on its GPU if it has one."""
    loaded: dict[str, TaskEncoder] = {}
    for task in work.plan:
        name = task.feature_set
        if name not in loaded:
            loaded[name] = TaskEncoder(work.requests[name].build("auto"), work.store.storage, batch_sizes)
        yield loaded[name](decode_task(task, work.specs[name]))
