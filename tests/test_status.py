"""The status file of a job, and its state after each way in which a job can end."""

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from speechclip.errors import Damaged, InvalidInput, StorageFailed, WorkLeft
from speechclip.records import Record, to_json
from speechclip.status import SILENT_SECONDS, JobStatus, Reporter, State, read_status
from speechclip.storage import Storage

PATH = "jobs/one.json"


class Count(Record, frozen=True):
    done: int


def reporter(storage: Storage, **options: object) -> Reporter:
    plain = {"look": lambda: Count(done=3), "show_seconds": 0.01}
    return Reporter(storage, PATH, job="one", command="featurize", **(plain | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (None, "done", ""),
        (WorkLeft("too much is rejected"), "work left", "too much is rejected"),
        (InvalidInput("no such word"), "failed", "no such word"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(15), "interrupted", "SystemExit"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_file_says_how_the_job_ended(tmp_path: Path, error: BaseException | None, state: State, says: str) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), reporter(storage):
        found = read_status(storage, PATH)
        assert (found.state, found.job, found.command) == ("running", "one", "featurize")
        if error:
            raise error
    found = read_status(storage, PATH)
    assert (found.state, found.error, found.figures) == (state, says, {"done": 3})


def test_figures_are_shown_while_it_runs_and_the_last_ones_once(tmp_path: Path) -> None:
    shown: list[tuple[int, bool]] = []
    enough = threading.Event()

    def show(count: Count, is_last: bool) -> None:
        shown.append((count.done, is_last))
        if len(shown) >= 3:
            enough.set()

    with reporter(Storage(str(tmp_path)), show=show) as report:
        assert enough.wait(10)
        report.conclude(Count(done=7))
        before = len(shown)
    assert shown[before - 1 :] == [(3, True)]
    assert all(not is_last for _, is_last in shown[:-1])
    assert read_status(Storage(str(tmp_path)), PATH).figures == {"done": 7}


def test_a_job_without_figures_shows_nothing(tmp_path: Path) -> None:
    shown: list[object] = []
    with reporter(Storage(str(tmp_path)), look=lambda: None, show=lambda *one: shown.append(one)):
        pass
    assert shown == []
    assert read_status(Storage(str(tmp_path)), PATH).figures == {}


def test_a_storage_that_fails_is_a_warning_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageFailed("the storage is full")

    monkeypatch.setattr(Storage, "replace", fail)
    with reporter(Storage(str(tmp_path))):
        pass
    assert caplog.messages == ["jobs/one.json: the job's status can't be written (the storage is full)"]


def test_a_running_job_that_writes_nothing_for_a_minute_is_silent() -> None:
    now = datetime.now(UTC)
    status = JobStatus(job="one", command="train", state="running", started=now, updated=now, host="h")
    assert not status.is_silent(now + timedelta(seconds=SILENT_SECONDS - 1))
    assert status.is_silent(now + timedelta(seconds=SILENT_SECONDS + 1))


def test_a_file_that_is_not_a_status_is_damaged(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.replace(PATH, to_json(Count(done=1)))
    with pytest.raises(Damaged, match="not a status file of this version of speechclip"):
        read_status(storage, PATH)
