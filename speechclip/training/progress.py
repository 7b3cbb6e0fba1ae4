"""How fast a run trains and how long it will still take, as reported every few seconds."""

import time

from speechclip.records import Record

# The least time between two reports without a recall.
REPORT_SECONDS = 5.0


class TrainingProgress(Record, frozen=True):
    """One report of a run.

    `wait_share` is the share of the time since the last report, from 0 to 1, that worker 0 waited for data. `recall` is
    the mean recall at 10 on the dev split, if this step was validated.
    """

    step: int
    max_steps: int
    loss: float
    steps_per_second: float
    eta_seconds: float
    wait_share: float
    recall: float | None = None


class Pace:
    """Counts steps and waiting time between two reports."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._restart(time.perf_counter())

    def add_step(self, wait_seconds: float) -> None:
        """Count one step, before which the worker waited this long for its data."""
        self._num_steps += 1
        self._wait_seconds += wait_seconds

    def report(self, step: int, loss: float, recall: float | None) -> TrainingProgress | None:
        """The progress after `step`. None if the last report is recent, unless there is a recall or the run ends."""
        now = time.perf_counter()
        seconds = now - self._started
        if seconds < REPORT_SECONDS and recall is None and step < self._max_steps:
            return None
        rate = self._num_steps / seconds
        progress = TrainingProgress(
            step=step,
            max_steps=self._max_steps,
            loss=loss,
            steps_per_second=rate,
            eta_seconds=(self._max_steps - step) / rate,
            wait_share=self._wait_seconds / seconds,
            recall=recall,
        )
        self._restart(now)
        return progress

    def _restart(self, now: float) -> None:
        self._started, self._num_steps, self._wait_seconds = now, 0, 0.0
