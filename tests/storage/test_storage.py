import io
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from support import s3_servers
from support.fault_proxy import FaultProxy, Schedule

from speechclip.errors import InvalidInput, SourceMissing, StorageRefused
from speechclip.storage import Storage, parse_parquet, read_uri
from speechclip.storage.bucket import Bucket
from speechclip.storage.folder import INCOMING
from speechclip.storage.retry import ADVICE


def test_create_never_overwrites_a_file(store_uri: str) -> None:
    storage = Storage(store_uri)
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.read("a/b") == b"first"
    assert storage.size("a/b") == 5
    assert storage.size("a/c") is None
    assert storage.size("a") is None
    assert list(storage.list("a")) == ["a/b"]


def test_a_range_may_reach_behind_the_end_of_the_file(store_uri: str) -> None:
    storage = Storage(store_uri)
    storage.create("file", b"first")
    storage.create("empty", b"")
    assert storage.read("file", 1, 3) == b"ir"
    assert storage.read("file", 3) == b"st"
    assert storage.read("file", 3, 99) == b"st"
    assert storage.read("file", 2, 2) == storage.read("file", 5, 9) == storage.read("file", 7, 9) == b""
    assert storage.read("empty") == storage.read("empty", 0, 4) == b""
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    assert (storage.read_or_empty("nothing"), storage.read_or_empty("file")) == (b"", b"first")


def test_of_many_writers_that_create_one_file_exactly_one_succeeds(store_uri: str) -> None:
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


def test_replace_overwrites_a_file(store_uri: str) -> None:
    storage = Storage(store_uri)
    storage.replace("a/file", b"first, and longer")
    storage.replace("a/file", b"second")
    assert storage.read("a/file") == b"second"
    assert [file.path for file in storage.stat("", with_incoming=True)] == ["a/file"]


def test_a_write_that_fails_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("file", b"x")
    storage.create("file", b"y")
    with pytest.raises(TypeError):
        storage.replace("file", "no bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        storage.create("other", "no bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert storage.read("file") == b"x"


def test_list_and_exists_know_a_folder_from_a_name_that_begins_alike(store_uri: str) -> None:
    storage = Storage(store_uri)
    for path in ("a/2", "a/1/x", "ab/1", "a.txt"):
        storage.create(path, b"x")
    assert list(storage.list("a")) == ["a/1/x", "a/2"]
    assert sorted(storage.list("")) == ["a.txt", "a/1/x", "a/2", "ab/1"]
    assert list(storage.list("c")) == []
    assert [storage.exists(path) for path in ("a", "a/1", "a/1/x", "a/3", "b")] == [True, True, True, False, False]


def test_stat_tells_size_and_age(store_uri: str) -> None:
    storage, before = Storage(store_uri), time.time()
    storage.create("a/b", b"12345")
    (file,) = storage.stat("a")
    # S3 tells whole seconds.
    assert (file.path, file.size) == ("a/b", 5)
    assert before - 1.1 <= file.modified <= time.time() + 0.1
    assert storage.modified("a/b") == file.modified
    assert storage.modified("a/c") is None


def test_temporary_files_of_killed_writers_are_listed_on_request(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("a/b", b"x")
    (tmp_path / "a" / f"{INCOMING}1").write_bytes(b"torn")
    assert list(storage.list("")) == ["a/b"]
    assert [file.path for file in storage.stat("", with_incoming=True)] == [f"a/{INCOMING}1", "a/b"]


def test_deleting_a_file_that_is_gone_is_no_error(store_uri: str) -> None:
    storage = Storage(store_uri)
    for path in ("a/[1]/x", "a/1/x", "a/2"):
        storage.create(path, b"x")
    storage.delete(["a/[1]/x", "a/3"])
    assert list(storage.list("")) == ["a/1/x", "a/2"]
    storage.delete(["a/1/x", "a/2"])
    assert not storage.exists("a")


def test_deleting_the_last_file_of_a_folder_fails_no_writer(tmp_path: Path) -> None:
    storage, stop = Storage(str(tmp_path)), threading.Event()

    def tidy() -> None:
        while not stop.is_set():
            storage.delete(["a/b/c/none"])

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        for number in range(40):
            storage.create("a/b/c/file", str(number).encode())
            assert storage.read("a/b/c/file") == str(number).encode()
            storage.delete(["a/b/c/file"])
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_objects_that_a_busy_server_did_not_delete_are_tried_again(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The answer is 200, and lists the objects that were not deleted."""
    storage, asked = Storage(s3_uri), []
    request = Bucket._request

    def answer(bucket: Bucket, method: str, **arguments: Any) -> Any:
        asked.append(method)
        if len(asked) == 1:
            return {"Errors": [{"Key": "store/a", "Code": code, "Message": "AKIAEXAMPLE"}]}
        return request(bucket, method, **arguments)

    storage.create("a", b"1")
    monkeypatch.setattr(Bucket, "_request", answer)
    storage.delete(["a"])
    assert asked == ["delete_objects"] * 2
    assert not storage.exists("a")


def test_objects_that_may_not_be_deleted_are_an_error(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"Errors": [{"Key": "store/a", "Code": "AccessDenied", "Message": "AKIAEXAMPLE"}]}
    monkeypatch.setattr(Bucket, "_request", lambda *_, **__: answer)
    with pytest.raises(StorageRefused) as caught:
        Storage(s3_uri).delete(["a"])
    assert str(caught.value) == f"{s3_uri}: deleting failed (AccessDenied); {ADVICE}"


def begin_uploads(endpoint: str, bucket: str) -> None:
    client = s3_servers.client(endpoint)
    for key in ("store/a", "elsewhere/b"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1000)


def test_unfinished_uploads_are_listed_and_aborted(s3_uri: str, s3_endpoint: str) -> None:
    bucket, now = s3_uri.split("/")[2], time.time() + 60
    begin_uploads(s3_endpoint, bucket)
    storage = Storage(s3_uri)
    found = list(storage.abort_uploads(older_than=now, dry_run=True))
    assert [(file.path, file.size) for file in found] == [("a", 1000)]
    assert list(storage.abort_uploads(older_than=now)) == found
    left = s3_servers.client(s3_endpoint).list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/b"]


@pytest.mark.slow
def test_a_young_upload_is_not_aborted(seaweedfs_endpoint: str, aws: Callable[..., None]) -> None:
    """moto gives every upload the year 2010, so this needs another server."""
    aws(**s3_servers.environment(seaweedfs_endpoint))
    bucket = s3_servers.new_bucket(seaweedfs_endpoint)
    begin_uploads(seaweedfs_endpoint, bucket)
    storage = Storage(f"s3://{bucket}/store")
    assert list(storage.abort_uploads(older_than=time.time() - 60)) == []
    assert [file.path for file in storage.abort_uploads(older_than=time.time() + 60)] == ["a"]


@pytest.mark.parametrize("server", ["s3_endpoint", pytest.param("seaweedfs_endpoint", marks=pytest.mark.slow)])
def test_every_page_of_uploads_and_parts_is_read(
    server: str, request: pytest.FixtureRequest, aws: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint: str = request.getfixturevalue(server)
    aws(**s3_servers.environment(endpoint))
    bucket, client = s3_servers.new_bucket(endpoint), s3_servers.client(endpoint)
    for key in ("a", "b", "c", "d", "e"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=f"store/{key}")["UploadId"]
        for part in (1, 2, 3):
            client.upload_part(Bucket=bucket, Key=f"store/{key}", UploadId=upload, PartNumber=part, Body=b"x" * 100)
    plain, sizes = Bucket._request, {"list_multipart_uploads": {"MaxUploads": 2}, "list_parts": {"MaxParts": 1}}
    monkeypatch.setattr(
        Bucket, "_request", lambda self, method, **given: plain(self, method, **given, **sizes.get(method, {}))
    )
    found = Storage(f"s3://{bucket}/store").abort_uploads(older_than=time.time() + 60, dry_run=True)
    assert sorted((file.path, file.size) for file in found) == [(key, 300) for key in ("a", "b", "c", "d", "e")]


def test_a_local_folder_has_no_unfinished_uploads(tmp_path: Path) -> None:
    assert list(Storage(str(tmp_path)).abort_uploads(older_than=time.time() + 60)) == []


@pytest.mark.parametrize("kind", ["drop-answer", "late-500", "duplicate", "truncate"])
def test_a_writer_whose_answer_was_lost_recognises_its_own_file(proxy: FaultProxy, proxied_uri: str, kind: str) -> None:
    storage = Storage(proxied_uri)
    for name in ("a", "b"):
        proxy.schedule(Schedule((kind,), budget=1, only="PUT"))
        assert storage.create(name, b"equal bytes")
        proxy.schedule(Schedule((kind,), budget=1, only="PUT"))
        assert not storage.create(name, b"equal bytes")
        assert len(proxy.schedule(Schedule())) == 1


def test_a_pickled_storage_holds_no_secret(s3_uri: str) -> None:
    storage = Storage(s3_uri)
    assert storage.delta_options["AWS_SECRET_ACCESS_KEY"] == s3_servers.SECRET
    assert s3_servers.SECRET.encode() not in pickle.dumps(storage)
    assert s3_servers.SECRET not in repr(vars(storage))


GOOD_NAMES = (
    "a b",
    "a%b",
    "[x]",
    "a#b",
    "a?b",
    "ünï-日本",
    "e\u0301",
    "a+b",
    "a&b=c",
    "~x",
    "a:b",
    "{x}*|^<>",
    " lead",
)
BAD_NAMES = ("a%20b", "%00", "a\nb", "a\x7fb", "a\\b")


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_delta_puts_its_table_into_the_folder_of_exactly_this_name(store_uri: str, name: str) -> None:
    storage = Storage(f"{store_uri}/{name}")
    schema = pa.schema([("number", pa.int64())])
    storage.delta("making", "table", lambda uri, options: DeltaTable.create(uri, schema, storage_options=options))
    assert list(storage.list("")) == ["table/_delta_log/00000000000000000000.json"]
    assert (
        storage.delta("opening", "table", lambda uri, options: DeltaTable(uri, storage_options=options)).version() == 0
    )


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_delta_takes_for_another_place_is_refused(tmp_path: Path, name: str) -> None:
    for root in (f"{tmp_path}/{name}", f"s3://bucket/{name}"):
        with pytest.raises(InvalidInput, match="choose another"):
            Storage(root).delta_uri("catalog")


@pytest.mark.parametrize("root", ["s3://bucket/a/../b", "s3://bucket/.", "s3://bucket/a?versionId=b", "s3://b/\udcff"])
def test_an_address_that_s3_takes_for_another_is_refused(root: str) -> None:
    with pytest.raises(InvalidInput, match="correct it"):
        Storage(root)


def test_one_place_has_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("s3://bucket//a/").root == Storage("s3://bucket/a").root == "s3://bucket/a"
    assert Storage("s3://bucket/").address("x") == "s3://bucket/x"
    roots = ("a b/c", f"{tmp_path}//a b/c/", f"/{tmp_path}/a b/c", f"file://{tmp_path}/a%20b/c", "./a b/c")
    assert {Storage(root).root for root in roots} == {str(tmp_path / "a b" / "c")}


@pytest.mark.parametrize("root", ["gs://bucket", "s3://", "s3:///", "http://host/x", "file://host/x"])
def test_other_schemes_and_places_are_refused(root: str) -> None:
    with pytest.raises(InvalidInput, match=root):
        Storage(root)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="no such file"):
        read_uri(str(tmp_path / "nothing.wav"))


@pytest.mark.slow
def test_more_objects_than_a_page_are_listed_and_deleted(s3_uri: str, s3_endpoint: str) -> None:
    client, bucket = s3_servers.client(s3_endpoint), s3_uri.split("/")[2]
    names = [f"{number:04}" for number in range(1100)]
    for name in names:
        client.put_object(Bucket=bucket, Key=f"store/{name}", Body=b"x")
    storage = Storage(s3_uri)
    assert list(storage.list("")) == names
    storage.delete(names[:-1])
    assert list(storage.list("")) == names[-1:]


def test_a_flipped_bit_in_the_name_of_a_column_is_no_parquet() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"name": [1]}).replace_schema_metadata(None), buffer, store_schema=False)
    whole = buffer.getvalue()
    assert parse_parquet(whole).column_names == ["name"]
    with pytest.raises(pa.ArrowInvalid):
        parse_parquet(whole.replace(b"name", b"n\xe1me"))
