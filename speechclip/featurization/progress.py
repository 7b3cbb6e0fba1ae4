"""How far a featurize job is, counted from its receipts."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from speechclip.featurization.plan import Plan
from speechclip.records import MODALITIES, Modality, Receipt, Record
from speechclip.spec import EncoderSpec


class FeaturizeProgress(Record, frozen=True):
    """The state of a job at one moment. `tasks` is the number of tasks that were open when it began.

    `bound_by` is what the encoders spent most time on since the last report: `encoding`, `writing`, `fetching and
    decoding`, or `starting` before the first receipt. `eta_seconds` is the estimated time left. It is None before the
    first receipt, and too small while one modality has no receipt yet; then `is_eta_whole` is false.
    """

    tasks: int
    tasks_done: int
    tasks_skipped: int
    utterances: int
    images: int
    texts: int
    rejected: int
    speech_seconds: float
    bytes: int
    seconds: float
    bound_by: str
    eta_seconds: float | None
    is_eta_whole: bool


@dataclass
class _Branch:
    """The progress of one modality. `started` is when its first task began, by the clock of the tally."""

    left: int = 0
    done: int = 0
    started: float = 0.0
    stored: int = 0

    def eta(self, now: float) -> float | None:
        """Seconds until its tasks are done, at its rate so far. None if it has no rate yet."""
        if not self.left:
            return 0.0
        return self.left * (now - self.started) / self.done if self.done else None


class Tally:
    """Counts receipts as they come. Another thread may call `look` at the same time."""

    def __init__(
        self, plan: Plan, specs: Mapping[str, EncoderSpec], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._num_settled = clock, plan.num_settled
        self._started = clock()
        self._modalities = {name: spec.modality for name, spec in specs.items()}
        self._branches: dict[Modality, _Branch] = {modality: _Branch() for modality in MODALITIES}
        for modality, amount in plan.by_modality.items():
            self._branches[modality].left = amount.num_tasks
        self._rejected = self._bytes = 0
        self._speech_seconds = 0.0
        self._spent = dict.fromkeys(("fetching and decoding", "encoding", "writing"), 0.0)
        self._bound_by = "starting"

    def watch(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """Yield the receipts, and count each one when the caller asks for the next."""
        for receipt in receipts:
            yield receipt
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        """Count one receipt."""
        branch = self._branches[self._modalities[receipt.feature_set]]
        if not branch.done:
            branch.started = self._clock() - receipt.seconds - receipt.idle_seconds
        branch.left, branch.done = branch.left - 1, branch.done + 1
        branch.stored += len(receipt.stored)
        self._rejected += len(receipt.rejected)
        self._bytes += receipt.num_bytes
        self._speech_seconds += receipt.speech_seconds
        self._spent["fetching and decoding"] += receipt.idle_seconds
        self._spent["encoding"] += receipt.seconds - receipt.write_seconds
        self._spent["writing"] += receipt.write_seconds

    def look(self) -> FeaturizeProgress:
        """The progress now."""
        if any(self._spent.values()):
            self._bound_by = max(self._spent, key=lambda name: self._spent[name])
            self._spent = dict.fromkeys(self._spent, 0.0)
        now, branches = self._clock(), self._branches.values()
        etas = [branch.eta(now) for branch in branches]
        known = [eta for eta, branch in zip(etas, branches, strict=True) if eta is not None and branch.done]
        return FeaturizeProgress(
            tasks=sum(branch.left + branch.done for branch in branches),
            tasks_done=sum(branch.done for branch in branches),
            tasks_skipped=self._num_settled,
            utterances=self._branches["speech"].stored,
            images=self._branches["image"].stored,
            texts=self._branches["text"].stored,
            rejected=self._rejected,
            speech_seconds=self._speech_seconds,
            bytes=self._bytes,
            seconds=now - self._started,
            bound_by=self._bound_by,
            eta_seconds=max(known) if known else None,
            is_eta_whole=None not in etas,
        )
