"""Metrics of a job for Prometheus, by Ray's own export: how much is on storage, and how training goes.

The driver counts them from receipts and progress reports. So they count features that are on storage, not features
that were asked for. docs/metrics.md lists the names.
"""

from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from speechclip.featurization.driver import Work
from speechclip.records import Receipt

if TYPE_CHECKING:
    # Only for type checkers. Otherwise each process that decodes would import torch, which takes seconds.
    from speechclip.training.progress import TrainingProgress

SECONDS_BOUNDARIES = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
BY_MODALITY = ("modality",)


class FeaturizeMetrics:
    """The metrics of one featurize job."""

    def __init__(self, work: Work) -> None:
        self._modalities = {name: spec.modality for name, spec in work.specs.items()}
        self._left = dict.fromkeys(self._modalities.values(), 0)
        self._left |= {modality: amount.num_tasks for modality, amount in work.plan.by_modality.items()}
        self._stored = Counter("speechclip_assets_stored", "Assets with a feature on storage", BY_MODALITY)
        self._rejected = Counter("speechclip_assets_rejected", "Assets without one", (*BY_MODALITY, "reason"))
        self._speech = Counter("speechclip_speech_seconds", "Seconds of speech encoded")
        self._bytes = Counter("speechclip_stored_bytes", "Bytes of shards and chunks", BY_MODALITY)
        self._tasks = Gauge("speechclip_tasks_left", "Tasks of the plan without a receipt", BY_MODALITY)
        self._task = Histogram(
            "speechclip_task_seconds", "Encoding and writing one task", SECONDS_BOUNDARIES, BY_MODALITY
        )
        for modality, count in self._left.items():
            self._tasks.set(count, {"modality": modality})

    def count(self, receipt: Receipt) -> None:
        """Add one receipt."""
        modality = self._modalities[receipt.feature_set]
        tags: dict[str, str] = {"modality": modality}
        self._left[modality] -= 1
        self._tasks.set(self._left[modality], tags)
        _add(self._stored, len(receipt.stored), tags)
        _add(self._bytes, receipt.num_bytes, tags)
        for rejected in receipt.rejected:
            _add(self._rejected, 1, tags | {"reason": rejected.reason})
        if receipt.num_encoded:
            self._task.observe(receipt.seconds, tags)
            _add(self._speech, receipt.speech_seconds, {})


class TrainMetrics:
    """The metrics of one training job, from the progress reports of its worker 0."""

    def __init__(self) -> None:
        self._step = Gauge("speechclip_train_step", "Steps done")
        self._loss = Gauge("speechclip_train_loss", "The last loss")
        self._wait = Gauge("speechclip_train_wait_share", "The share of the time that a step waits for data")
        self._recall = Gauge("speechclip_train_dev_recall", "Mean recall at 10 on dev, from 0 to 1")

    def show(self, progress: "TrainingProgress") -> None:
        """Set the metrics to one progress report."""
        self._step.set(progress.step)
        self._loss.set(progress.loss)
        self._wait.set(progress.wait_share)
        if progress.recall is not None:
            self._recall.set(progress.recall)


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    # Ray raises an error for an increment of 0.
    if amount > 0:
        counter.inc(amount, tags)
