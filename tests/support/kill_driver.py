"""The program that is killed: the driver without Ray, or any command, forked from a warm process.

`Nursery()` starts this file as a process that has imported everything and used nothing: Delta's client and fsspec start
their threads at first use, and a fork would lose them. Each job is a fork of it, so it costs no imports. A job is ended
by SIGKILL at a crash point (the fork kills itself inside a wrapped call) or some seconds after its start.
"""

import importlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from support.crash_points import arm

GROUP_SIZE = 3
# A job that hangs is killed.
TIMEOUT_SECONDS = 1500.0
# All that a job will import: pandas, by pyarrow at its first table, alone takes a third of a second.
IMPORTED_BEFORE = (
    "pandas", "pyarrow.pandas_compat", "numpy.fft", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin", "PIL.PpmImagePlugin", "s3fs", "soundfile", "soxr", "speechclip.cli.featurize",
    "speechclip.encoders.toy", "speechclip.featurization.driver", "speechclip.upkeep.gc",
)  # fmt: skip


class Job(msgspec.Struct, kw_only=True):
    """What one fork does: a function below by its name, when it starts, and where or when it is killed."""

    action: Literal["featurize", "command", "commit", "drop", "delete_unused"]
    arguments: list[str]
    log: str
    start_after: float = 0.0
    point: str = ""
    nth: int = 1
    kill_after: float | None = None
    environment: dict[str, str] = {}


class Ended(msgspec.Struct):
    """How a fork ended: its exit code, minus the signal if one killed it, and after how many seconds."""

    code: int
    seconds: float
    errors: str


class Nursery:
    """The warm process, as a test sees it."""

    def __enter__(self) -> "Nursery":
        tests = str(Path(__file__).parents[1])
        paths = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.kill_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise AssertionError(self._process.communicate()[1].decode())
        return self

    def __exit__(self, *_: object) -> None:
        errors = self._process.communicate()[1].decode()
        assert self._process.returncode == 0, f"ended with {self._process.returncode}: {errors}"

    def run(self, *jobs: Job) -> list[Ended]:
        """Start these jobs together and wait for the end of all; S3 is reached as this process reaches it."""
        found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        for job in jobs:
            job.environment |= found
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(jobs) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=list[Ended])


def serve() -> None:
    """Fork what standard input asks for, a list of jobs a line."""
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        jobs = msgspec.json.decode(line, type=list[Job])
        sys.stdout.buffer.write(msgspec.json.encode(_watch(jobs)) + b"\n")
        sys.stdout.buffer.flush()


def _watch(jobs: Sequence[Job]) -> list[Ended]:
    """Fork the jobs, kill those whose time has come, wait for all."""
    started = time.monotonic()
    pids = [_fork(job) for job in jobs]
    handles = {os.pidfd_open(pid): number for number, pid in enumerate(pids)}
    kills = [TIMEOUT_SECONDS if job.kill_after is None else job.kill_after for job in jobs]
    ended: dict[int, Ended] = {}
    while handles:
        next_kill = started + min(kills[number] for number in handles.values())
        ready, _, _ = select.select(list(handles), [], [], max(0.0, next_kill - time.monotonic()))
        for handle in ready:
            number = handles.pop(handle)
            os.close(handle)
            code = os.waitstatus_to_exitcode(os.waitpid(pids[number], 0)[1])
            ended[number] = Ended(code, time.monotonic() - started, Path(f"{jobs[number].log}.errors").read_text())
        for number in handles.values():
            if time.monotonic() - started >= kills[number]:
                os.kill(pids[number], signal.SIGKILL)
                kills[number] = TIMEOUT_SECONDS
    return [ended[number] for number in range(len(jobs))]


def _fork(job: Job) -> int:
    Path(f"{job.log}.errors").touch()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for stream, suffix in ((sys.stdout, "out"), (sys.stderr, "errors")):
            stream.flush()
            os.dup2(os.open(f"{job.log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
        os.environ.update(job.environment)
        time.sleep(job.start_after)
        arm(job.log, job.point, job.nth)
        globals()[job.action](*job.arguments)
        if job.kill_after is not None:
            # Done before its time: the kill finds it at its very end.
            signal.pause()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        if sys.exception():
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def featurize(manifest: str, store: str) -> None:
    """`speechclip featurize --inline` with toy encoders, commits of a few tasks, and small tasks."""
    from speechclip.featurization.driver import GroupCommitter, commit_receipts, encode_inline, prepare_work
    from speechclip.featurization.plan import TaskSizes
    from speechclip.featurization.tasks import EncoderRequest
    from speechclip.manifest import Manifest
    from speechclip.records import MODALITIES
    from speechclip.store import FeatureStore

    requests = [EncoderRequest(encoder_name="toy", modality=modality, codec="fp32") for modality in MODALITIES]
    encoders = [(request, request.build().spec) for request in requests]
    sizes = TaskSizes(shard_items=2, chunk_rows=2)
    work = prepare_work(FeatureStore(store), Manifest.read(manifest), encoders, sizes)
    committer = GroupCommitter(work, group_size=GROUP_SIZE)
    commit_receipts(encode_inline(work), committer)
    assert committer.summary().missing == 0


def command(*arguments: str) -> None:
    """Any command of `speechclip`, to its exit code."""
    from speechclip.cli import main

    main(arguments)


def commit(store: str, writer: str, num_commits: str) -> None:
    """So many commits of one receipt each, as fast as the others let it."""
    from speechclip.records import Receipt, StoredAsset
    from speechclip.store import FeatureStore, catalog
    from support.feature_sets import VECTORS_SPEC

    # Among thousands of commits the rare checkpoints of a short run would be most of the work.
    catalog.CHECKPOINT_EVERY = 10
    for number in range(int(num_commits)):
        name = f"{writer}-{number}"
        stored = (StoredAsset(key=name, offset=0, num_frames=0, sums_offset=0, checksum=7),)
        receipt = Receipt(
            task=name, feature_set=VECTORS_SPEC.fingerprint, shard=f"shard-{name}", stored=stored, rejected=(),
            num_bytes=1, seconds=1.0, num_encoded=1,
        )  # fmt: skip
        FeatureStore(store).commit([receipt], "m")


def drop(store: str, keys: str) -> None:
    """Commit the deletion of these keys, by feature set, from a JSON file."""
    from speechclip.store import FeatureStore

    FeatureStore(store).drop(msgspec.json.decode(Path(keys).read_bytes()))


def delete_unused(store: str) -> None:
    """`speechclip gc`, without a grace period."""
    from speechclip.store import FeatureStore
    from speechclip.upkeep import gc

    gc.delete_unused(FeatureStore(store), grace_seconds=0)


if __name__ == "__main__":
    serve()
