"""Faults that pass are retried, up to a limit. Then one sentence says what failed, and it holds no secret."""

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import s3_servers
from support.fault_proxy import FAULTS, FaultProxy, Schedule

from speechclip.cli import main
from speechclip.errors import StorageFailed
from speechclip.manifest import Manifest
from speechclip.storage import Storage, retry
from speechclip.storage import aws as resolution
from speechclip.store import FeatureStore

Aws = Callable[..., None]


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same rules with limits that a test can wait for."""
    monkeypatch.setattr(retry, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 2)
    monkeypatch.setitem(resolution.CLIENT, "read_timeout", 1)
    for name, value in {"timeout": "1s", "max_retries": "2", "retry_timeout": "2s"}.items():
        monkeypatch.setitem(resolution.DELTA, name, value)
    resolution._filesystem.cache_clear()
    yield
    resolution._filesystem.cache_clear()


@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_of_any_kind_is_retried(proxy: FaultProxy, proxied_uri: str, kind: str) -> None:
    storage = Storage(proxied_uri)

    def after_fault() -> Storage:
        proxy.schedule(Schedule((kind,), budget=1))
        return storage

    assert after_fault().create("a/b", b"12345")
    assert after_fault().read("a/b") == b"12345"
    assert after_fault().read("a/b", 1, 3) == b"23"
    assert after_fault().size("a/b") == 5
    assert list(after_fault().list("a")) == ["a/b"]
    after_fault().replace("a/b", b"new")
    assert after_fault().read("a/b") == b"new"
    after_fault().delete(["a/b"])
    assert not after_fault().exists("a/b")
    store = FeatureStore(after_fault().root)
    store.create()
    proxy.schedule(Schedule((kind,), budget=1, only="_delta_log"))
    assert store.snapshot().version == 0


def test_pauses_grow_are_jittered_and_end(proxy: FaultProxy, proxied_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    proxy.schedule(Schedule(("503",)))
    for _ in range(4):
        with pytest.raises(StorageFailed, match=r"10 times.*503 SlowDown"):
            Storage(proxied_uri).read("file")
    for number in range(retry.MAX_ATTEMPTS - 1):
        limit = min(retry.LONGEST_PAUSE_SECONDS, retry.FIRST_PAUSE_SECONDS * 2 ** (number + 1))
        assert max(pauses[number :: retry.MAX_ATTEMPTS - 1]) <= limit
    assert len(set(pauses)) == len(pauses) == 4 * (retry.MAX_ATTEMPTS - 1)
    assert max(pauses) > 10 * retry.FIRST_PAUSE_SECONDS


@pytest.mark.parametrize("kind", ["503", "deny"])
def test_the_clients_own_error_is_no_part_of_ours(
    proxy: FaultProxy, proxied_uri: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A traceback would show it, and it may hold secrets."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    proxy.schedule(Schedule((kind,)))
    with pytest.raises(StorageFailed) as caught:
        Storage(proxied_uri).read("file")
    assert caught.value.__context__ is caught.value.__cause__ is None


def ends_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """The sentence with which the command ends. Neither it nor the log holds a secret."""
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as end:
        main(arguments)
    shown = capsys.readouterr()
    assert end.value.code == 1
    assert shown.out == ""
    (sentence,) = shown.err.splitlines()
    for secret in (s3_servers.SECRET, s3_servers.KEY_ID, "Signature"):
        assert secret not in shown.err + caplog.text
    return sentence


@functools.cache
def empty_store(endpoint: str) -> str:
    """A store that is made once, for tests that try to read it and fail."""
    uri = f"s3://{s3_servers.new_bucket(endpoint)}/store"
    FeatureStore(uri).create()
    return uri


@pytest.fixture
def command(tmp_path: Path, s3_endpoint: str, proxy: FaultProxy) -> list[str]:
    """A command that opens a store behind the proxy."""
    manifest = tmp_path / "m.parquet"
    Manifest.from_rows([]).write(str(manifest))
    return ["-v", "rejected", "--manifest", str(manifest), "--store", empty_store(s3_endpoint)]


@pytest.mark.parametrize("only", ["", "_delta_log"], ids=["s3fs", "delta"])
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("deny", "403 AccessDenied"),
        ("500", "500 InternalError"),
        ("503", "503 SlowDown"),
        ("reset", "onnection"),
        ("truncate", "(ClientPayloadError|end of file)"),
        ("drop-answer", "onnection"),
        ("silent", "(ReadTimeoutError|timed out)"),
    ],
)
@pytest.mark.usefixtures("short_limits")
def test_a_store_out_of_reach_ends_a_command_with_one_sentence(
    command: list[str],
    proxy: FaultProxy,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    cause: str,
    only: str,
) -> None:
    proxy.schedule(Schedule((kind,), only=only))
    started = time.monotonic()
    sentence = ends_in_one_line(command, capsys, caplog)
    assert time.monotonic() - started < 15
    assert re.match(rf"error: {command[-1]}/\S+: \w.* failed.*\(.*{cause}.*\); fix that", sentence)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "EndpointConnectionError at http://127.0.0.1:1"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "begins with http"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentialsError"),
    ],
)
@pytest.mark.usefixtures("short_limits")
def test_wrong_settings_are_named(
    command: list[str],
    s3_endpoint: str,
    aws: Aws,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str],
    cause: str,
) -> None:
    aws(**s3_servers.environment(s3_endpoint) | settings)
    assert cause in ends_in_one_line(command, capsys, caplog)


@pytest.mark.usefixtures("short_limits")
def test_the_output_of_a_program_for_credentials_is_not_shown(
    command: list[str],
    s3_endpoint: str,
    aws: Aws,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "program.py").write_text("raise SystemExit('no session; the refresh token was hunter2')")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {tmp_path}/program.py\n")
    aws(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_ENDPOINT_URL=s3_endpoint, AWS_DEFAULT_REGION="us-east-1")
    sentence = ends_in_one_line(command, capsys, caplog)
    assert "CredentialRetrievalError" in sentence
    assert "hunter2" not in sentence


def test_a_missing_bucket_is_named(
    command: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command[-1] = "s3://nobody-made-this-bucket/store"
    assert "nobody-made-this-bucket" in (sentence := ends_in_one_line(command, capsys, caplog))
    assert "404 NoSuchBucket" in sentence


@pytest.mark.slow
@pytest.mark.parametrize("only", ["", "_delta_log"], ids=["s3fs", "delta"])
def test_a_silent_server_ends_a_command_within_two_minutes(command: list[str], proxy: FaultProxy, only: str) -> None:
    """With the real limits, in a process as a user starts it."""
    proxy.schedule(Schedule(("silent",), only=only))
    program = [str(Path(sys.executable).with_name("speechclip")), *command]
    done = subprocess.run(program, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {command[-1]}/")
    assert s3_servers.SECRET not in done.stdout + done.stderr
    assert s3_servers.KEY_ID not in done.stdout + done.stderr
