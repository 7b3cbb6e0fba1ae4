"""The status file of a job: it rewrites the file while it runs, and leaves it when it ends.

`speechclip status` reads it. The file decides nothing: a job that can't write it warns and goes on.
"""

import logging
import platform
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import msgspec

from speechclip.errors import Damaged, SpeechClipError, WorkLeft
from speechclip.records import Record, from_json, to_json
from speechclip.storage import Storage

logger = logging.getLogger(__name__)

State = Literal["running", "done", "work left", "failed", "interrupted"]
WRITE_SECONDS = 10.0
# After six missed rewrites we assume that the job was killed, or is cut off from its storage.
SILENT_SECONDS = 6 * WRITE_SECONDS


class JobStatus(Record, frozen=True):
    """The content of the file. `figures` are the fields of the last progress report, or of the summary at the end."""

    job: str = msgspec.field(name="run")
    command: str
    state: State
    started: datetime
    updated: datetime
    host: str
    error: str = ""
    figures: dict[str, Any] = {}

    def is_silent(self, now: datetime) -> bool:
        """Whether its state is `running` although the file was not rewritten for a minute."""
        return self.state == "running" and (now - self.updated).total_seconds() > SILENT_SECONDS


class Reporter(AbstractContextManager["Reporter"]):
    """While it is open, a thread shows the job's progress every `show_seconds` and rewrites its file every ten seconds.

    `look` returns the figures, or None as long as there are none. `show` gets them, and whether they are the last. If
    the file can't be written, there is one warning and the job goes on.

        with Reporter(storage, path, job=name, command="train", look=lambda: last, show=print) as reporter:
            ...
            reporter.conclude(summary)
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        *,
        job: str,
        command: str,
        look: Callable[[], Record | None],
        show: Callable[[Any, bool], None] = lambda figures, is_last: None,
        show_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._storage, self._path, self._look, self._show_figures = storage, path, look, show
        self._show_seconds = show_seconds
        self._is_over, self._has_warned = threading.Event(), False
        now = datetime.now(UTC)
        self.status = JobStatus(
            job=job, command=command, state="running", started=now, updated=now, host=platform.node()
        )
        self._thread = threading.Thread(target=self._report, name="reports", daemon=True)

    def __enter__(self) -> "Reporter":
        self._write(self.status)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.conclude()
        sentence = str(error) if isinstance(error, SpeechClipError) else kind.__name__ if kind else ""
        self._write(msgspec.structs.replace(self.status, state=_state(error), error=sentence))

    def conclude(self, summary: Record | None = None) -> None:
        """Show the last figures and stop the thread. The file will hold `summary`, or else the last figures."""
        if not self._is_over.is_set():
            self._is_over.set()
            self._thread.join()
            self._show(is_last=True)
        if summary is not None:
            self._keep(summary)

    def _report(self) -> None:
        unwritten = 0.0
        while not self._is_over.wait(self._show_seconds):
            self._show(is_last=False)
            unwritten += self._show_seconds
            if unwritten >= WRITE_SECONDS:
                self._write(self.status)
                unwritten = 0.0

    def _show(self, *, is_last: bool) -> None:
        found = self._look()
        if found is not None:
            self._show_figures(found, is_last)
            self._keep(found)

    def _keep(self, figures: Record) -> None:
        self.status = msgspec.structs.replace(self.status, figures=msgspec.to_builtins(figures))

    def _write(self, status: JobStatus) -> None:
        self.status = msgspec.structs.replace(status, updated=datetime.now(UTC))
        try:
            self._storage.replace(self._path, to_json(self.status))
        except (SpeechClipError, OSError) as error:
            if not self._has_warned:
                logger.warning("%s: the job's status can't be written (%s)", self._path, error)
            self._has_warned = True


def read_status(storage: Storage, path: str) -> JobStatus:
    """The status in the file at `path`. Raises `FileNotFoundError`, or `Damaged` if the file holds something else."""
    try:
        return from_json(storage.read(path), JobStatus)
    except msgspec.DecodeError as error:
        raise Damaged(
            f"{storage.address(path)}: not a status file of this version of speechclip ({error})", "delete it"
        ) from None


def _state(error: BaseException | None) -> State:
    if error is None:
        return "done"
    if isinstance(error, WorkLeft):
        return "work left"
    return "failed" if isinstance(error, Exception) else "interrupted"
