"""A job as its log and `speechclip status` show it, and its end by SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from speechclip.cli import main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.records import to_json
from speechclip.status import JobStatus, read_status
from speechclip.storage import Storage
from speechclip.store.layout import JOBS, job_path

SMALL = ("--set", "featurize.tasks.shard_items=1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    corpus = make_synthetic(folder / "corpus", num_concepts=6, num_voices=3)
    main(["ingest", "table", str(corpus), "--out", str(folder / "m.parquet")])
    return folder / "m.parquet"


def start(manifest: Path, store: Path, *options: str, encoder: str = "toy") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "speechclip", "featurize", "--inline", "--manifest", str(manifest)]
    command += ["--store", str(store), "--speech", encoder, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def status(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    main(["status", *map(str, words)])
    return capsys.readouterr().out


def jobs(store: Path) -> Sequence[JobStatus]:
    storage = Storage(str(store))
    return [read_status(storage, path) for path in sorted(storage.list(JOBS))] if storage.exists(JOBS) else []


def test_a_run_ends_with_one_line_of_json_and_status_shows_it(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = start(manifest, tmp_path / "store", *SMALL).communicate(timeout=120)
    summary = json.loads(out)
    assert (summary["tasks_done"], summary["tasks_skipped"], summary["tasks_failed"]) == (18, 0, 0)
    assert "18 of 18 tasks, 18 utterances (0.00 h of speech, " in err
    assert "0 rejected, bound by " in err
    (job,) = jobs(tmp_path / "store")
    assert (job.job, job.state, job.command) == (summary["run"], "done", "featurize")
    assert "18 of 18 stored, 0 rejected" in status(capsys, "--store", tmp_path / "store")
    shown = status(capsys, "last", "--store", tmp_path / "store")
    assert summary["run"] in shown
    assert "tasks done" in shown
    (told,) = json.loads(status(capsys, summary["run"], "--store", tmp_path / "store", "--json"))
    assert told["figures"] == summary
    assert told["silent"] is False
    # Run again there is nothing to tell but that.
    out, err = start(manifest, tmp_path / "store", *SMALL).communicate(timeout=120)
    assert json.loads(out)["tasks_done"] == 0
    assert " of 0 tasks" not in err
    assert [job.state for job in jobs(tmp_path / "store")] == ["done", "done"]


def test_sigterm_commits_what_came_and_the_next_run_goes_on(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    process = start(manifest, store, *SMALL, encoder="hubert:untrained-tiny")
    deadline = time.monotonic() + 120
    # The second shard is there: the receipt of the first has come.
    while len(list(store.glob("features/**/*.xxh3"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "interrupted; what was committed is kept" in err
    summary = json.loads(out)
    assert summary["tasks_done"] >= 1
    assert summary["tasks_failed"] == 18 - summary["tasks_done"] > 0
    assert [job.state for job in jobs(store)] == ["interrupted"]
    assert "interrupted" in status(capsys, "--store", store)
    out, _ = start(manifest, store, *SMALL, encoder="hubert:untrained-tiny").communicate(timeout=120)
    again = json.loads(out)
    assert (again["stored_before"], again["tasks_skipped"]) == (summary["encoded"], summary["tasks_done"])
    assert again["missing"] == 0


def test_a_job_that_was_killed_is_shown_as_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    killed = JobStatus(
        job="20200101T000000-abcdef", command="featurize", state="running", started=long_ago, updated=long_ago,
        host="node-7", figures={"tasks_done": 5, "tasks": 9, "eta_seconds": 100.0},
    )  # fmt: skip
    Storage(str(tmp_path)).replace(job_path(killed.job), to_json(killed))
    shown = status(capsys, "--store", tmp_path)
    assert "silent: killed or disconnected" in shown
    assert "5 of 9 tasks, 100 s left" in shown
    # Of another version, or broken: it hides no other job.
    Storage(str(tmp_path)).replace(job_path("20190101T000000-abcdef"), b'{"jobs": 7}')
    main(["status", "--store", str(tmp_path)])
    both = capsys.readouterr()
    assert killed.job in both.out
    assert "20190101T000000-abcdef.json: not a status file" in both.err
    with pytest.raises(SystemExit) as end:
        main(["status", "20210101T000000-abcdef", "--store", str(tmp_path)])
    assert end.value.code == 1
    assert "no job 20210101T000000-abcdef" in capsys.readouterr().err


def test_a_place_without_jobs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(capsys, "--store", tmp_path / "none") == ""
    assert not os.path.exists(tmp_path / "none")
