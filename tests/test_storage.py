import pickle
import threading
from pathlib import Path

import pytest

from speechclip.errors import InvalidInput, SourceMissing
from speechclip.storage import Storage, read_uri


def test_create_writes_once(store_uri: str) -> None:
    storage = Storage(store_uri)
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.read("a/b") == b"first"
    assert storage.read("a/b", 1, 3) == b"ir"
    assert storage.size("a/b") == 5
    assert storage.size("a/c") is None
    assert list(storage.list("a")) == ["a/b"]


def test_of_many_creators_one_wins(store_uri: str) -> None:
    won = []

    def create(number: int) -> None:
        if Storage(store_uri).create("file", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [Storage(store_uri).read("file")]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("file", b"x")
    storage.create("file", b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_secret_is_in_what_travels(s3_uri: str) -> None:
    storage = Storage(s3_uri)
    assert storage.delta_options["AWS_SECRET_ACCESS_KEY"] == "test-secret"
    assert b"test-secret" not in pickle.dumps(storage)
    assert "test-secret" not in repr(storage.__dict__.get("root"))


def test_other_schemes_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="gs://"):
        Storage("gs://bucket")
    with pytest.raises(SourceMissing, match="no such file"):
        read_uri(str(tmp_path / "nothing.wav"))
