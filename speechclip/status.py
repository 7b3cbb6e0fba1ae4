"""What a job says of itself: a small file that it rewrites while it runs, and leaves when it is over."""

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
# After so many rewrites missed it is taken for killed, or cut off from its storage.
SILENT_SECONDS = 6 * WRITE_SECONDS


class JobStatus(Record, frozen=True):
    """The content of the file. `figures` are those of the job's progress, or of its last line once it is over."""

    job: str = msgspec.field(name="run")
    command: str
    state: State
    started: datetime
    updated: datetime
    host: str
    error: str = ""
    figures: dict[str, Any] = {}

    def is_silent(self, now: datetime) -> bool:
        """Whether it says that it runs, but has not said so for long."""
        return self.state == "running" and (now - self.updated).total_seconds() > SILENT_SECONDS


class Reporter(AbstractContextManager["Reporter"]):
    """While it is open, a thread tells every `tell_seconds` how far the job is, and keeps its file young.

    `look` gives the figures, None while there are none; `tell` shows them and hears whether they are the last. A file
    that can't be written is one warning: the job goes on.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        *,
        job: str,
        command: str,
        look: Callable[[], Record | None],
        tell: Callable[[Any, bool], None] = lambda figures, is_last: None,
        tell_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._storage, self._path, self._look, self._tell = storage, path, look, tell
        self._tell_seconds = tell_seconds
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
        """Tell the last of it, and keep the job's summary for its file; nothing is told after."""
        if not self._is_over.is_set():
            self._is_over.set()
            self._thread.join()
            self._show(is_last=True)
        if summary is not None:
            self._keep(summary)

    def _report(self) -> None:
        unwritten = 0.0
        while not self._is_over.wait(self._tell_seconds):
            self._show(is_last=False)
            unwritten += self._tell_seconds
            if unwritten >= WRITE_SECONDS:
                self._write(self.status)
                unwritten = 0.0

    def _show(self, *, is_last: bool) -> None:
        found = self._look()
        if found is not None:
            self._tell(found, is_last)
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
    """The file at `path`; `FileNotFoundError` where there is none, `Damaged` where it is something else."""
    try:
        return from_json(storage.read(path), JobStatus)
    except msgspec.DecodeError as error:
        raise Damaged(f"{storage.address(path)}: no status of a job that this speechclip knows ({error})") from None


def _state(error: BaseException | None) -> State:
    if error is None:
        return "done"
    if isinstance(error, WorkLeft):
        return "work left"
    return "failed" if isinstance(error, Exception) else "interrupted"
