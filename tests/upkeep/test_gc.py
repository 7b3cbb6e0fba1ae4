"""gc deletes the files that no live version names, and nothing else, whatever other processes do."""

import errno
import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import s3_servers
from support.feature_sets import content
from support.stores import IMAGE, SIZES, SPEECH, TOY, featurize, fill, synthetic

from speechclip.errors import Damaged, InvalidInput, NotStored
from speechclip.featurization.driver import encode_inline, prepare_work
from speechclip.manifest import Manifest
from speechclip.records import StoredFile
from speechclip.storage import Storage
from speechclip.store import FeatureStore, grace
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.tags import GcRecord, Tags
from speechclip.upkeep import gc, live
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.verify import verify

DAY = 86_400.0


def all_files(store: FeatureStore) -> dict[str, StoredFile]:
    return {file.path: file for file in store.storage.stat("", with_incoming=True)}


@pytest.fixture
def pass_days(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the clock that gc and jobs read. Files and commits keep their times."""

    def move(days: float) -> None:
        for module in (gc, live, grace):
            monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: time.time() + days * DAY))

    return move


def test_gc_deletes_nothing_of_a_fresh_store(store_uri: str) -> None:
    store = fill(store_uri)
    before = all_files(store)
    assert delete_unused(store, grace_seconds=0).files == 0
    assert all_files(store).keys() - before.keys() == {p for p in all_files(store) if p.startswith("collections/")}


def test_a_dry_run_counts_exactly_the_bytes_that_gc_deletes(store_uri: str) -> None:
    store = fill(store_uri)
    kept = {key: value for key, value in content(store.snapshot()).items() if key[0] != SPEECH}
    store.drop({SPEECH: None})
    before = all_files(store)
    said = delete_unused(store, grace_seconds=0, dry_run=True)
    assert all_files(store).keys() == before.keys()
    freed = delete_unused(store, grace_seconds=0)
    gone = before.keys() - all_files(store).keys()
    assert (said.files, said.bytes) == (freed.files, freed.bytes) == (len(gone), sum(before[p].size for p in gone))
    assert freed.files > 0
    assert not [path for path in all_files(store) if path.endswith((".tar", ".xxh3"))]
    assert content(store.snapshot()) == kept
    assert verify(store).findings == ()


def test_dropped_features_are_readable_until_the_grace_period_ends(
    tmp_path: Path, pass_days: Callable[[float], None]
) -> None:
    store = fill(str(tmp_path / "s"))
    before, version = content(store.snapshot()), store.snapshot().version
    for path in all_files(store):
        os.utime(store.storage.address(path), (time.time() - 100 * DAY,) * 2)
    store.drop({SPEECH: None})
    assert delete_unused(store).files == 0
    pass_days(6.9)
    assert delete_unused(store).files == 0
    assert content(store.snapshot(version)) == before
    pass_days(7.1)
    assert delete_unused(store).files > 0
    with pytest.raises(NotStored, match=rf"version {version} was deleted by `gc`"):
        store.snapshot(version)


def test_a_tagged_version_stays_whole_and_is_opened_by_its_tag(store_uri: str) -> None:
    store = fill(store_uri)
    before = content(store.snapshot())
    store.tags.create("paper", store.snapshot().version)
    store.drop({SPEECH: None, IMAGE: None})
    store.compact(min_files=2)
    delete_unused(store, grace_seconds=0)
    assert content(store.snapshot("paper")) == before
    assert verify(store).findings == ()
    store.tags.delete("paper")
    assert delete_unused(store, grace_seconds=0).files > 0
    assert verify(store).findings == ()


def test_a_deleted_version_cannot_be_tagged_and_a_tag_names_one_version(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"))
    version = store.snapshot().version
    store.drop({SPEECH: None})
    delete_unused(store, grace_seconds=0)
    with pytest.raises(NotStored, match="was deleted"):
        store.tags.create("late", version)
    assert store.tags.list() == []
    store.tags.create("head", store.snapshot().version)
    assert store.tags.create("head", store.snapshot().version).version == store.snapshot().version
    with pytest.raises(InvalidInput, match="names version"):
        store.tags.create("head", version)
    with pytest.raises(InvalidInput, match="letter"):
        store.tags.create("7", version)
    with pytest.raises(NotStored, match="name one of these: head"):
        store.snapshot("paper")


def test_a_tag_that_is_made_before_the_record_of_gc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc has read the tags already. Its first record fails, it reads the tags again, and it keeps the version."""
    store = fill(str(tmp_path / "s"))
    version, before = store.snapshot().version, content(store.snapshot())
    store.drop({SPEECH: None})
    begin = Tags.begin
    answers = []

    def tag_first(tags: Tags, announcement: str, kept: GcRecord) -> bool:
        if not answers:
            answers.append(True)
            FeatureStore(store.storage.root).tags.create("just-in-time", version)
        answers.append(begin(tags, announcement, kept))
        return answers[-1]

    monkeypatch.setattr(store.tags, "begin", functools.partial(tag_first, store.tags))
    assert version in delete_unused(store, grace_seconds=0).versions
    assert answers == [True, False, True]
    assert content(store.snapshot("just-in-time")) == before
    assert not list(store.storage.list("announcements"))


def test_a_gc_killed_before_its_record_keeps_every_version(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its announcement is left. Every version stays readable and can be tagged."""
    store = fill(store_uri)
    version, before = store.snapshot().version, content(store.snapshot())
    store.drop({SPEECH: None})

    def die(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.tags, "begin", die)
        with pytest.raises(KeyboardInterrupt):
            delete_unused(store, grace_seconds=0)
    assert content(store.snapshot(version)) == before
    store.tags.create("paper", version)
    assert delete_unused(store, grace_seconds=0).files == 0
    assert content(store.snapshot("paper")) == before


def test_a_shard_committed_while_gc_lists_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc lists the files before it reads the catalog, so it sees that these shards are named."""
    store = fill(str(tmp_path / "s"), some_rows(0, 9))
    work = prepare_work(store, synthetic(), [(request, request.build().spec) for request in TOY], SIZES)
    receipts = list(encode_inline(work))
    assert receipts
    listed = gc._listed

    def commit_meanwhile(storage: Storage) -> list[StoredFile]:
        store.commit(receipts, work.manifest.digest)
        return list(listed(storage))

    monkeypatch.setattr(gc, "_listed", commit_meanwhile)
    delete_unused(store, grace_seconds=0)
    assert content(store.snapshot()) == content(fill(str(tmp_path / "whole")).snapshot())
    assert verify(store).findings == ()


def test_a_file_that_a_job_has_written_again_meanwhile_is_not_deleted(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gc deletes it, and a resumed job writes it under the same name, while the first gc has it on its list."""
    store = fill(store_uri, some_rows(0, 9))
    work = prepare_work(store, synthetic(), [(request, request.build().spec) for request in TOY], SIZES)
    assert list(encode_inline(work)), "orphans"
    time.sleep(1.1)  # S3 counts seconds
    delete = store.storage.delete

    def another_first(paths: list[str], older_than: float | None = None) -> None:
        if older_than is not None:
            delete_unused(FeatureStore(store_uri), grace_seconds=0.5)
            time.sleep(1.1)  # so that what is written now is younger there too
            featurize(store_uri)
        delete(paths, older_than=older_than)

    monkeypatch.setattr(store.storage, "delete", another_first)
    assert delete_unused(store, grace_seconds=0.5).files > 0
    assert content(store.snapshot()) == content(FeatureStore(store_uri).snapshot())
    assert verify(store).findings == ()
    assert len(content(store.snapshot())) == 30


def test_gc_stops_at_a_folder_that_it_cannot_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the folder of tags looked empty, gc would delete what the tags name."""
    store = fill(str(tmp_path / "s"))
    store.tags.create("paper", store.snapshot().version)
    store.drop({SPEECH: None})
    before, scandir = all_files(store).keys(), os.scandir

    def deny(path: str) -> object:
        if str(path).endswith("/tags"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", deny)
        with pytest.raises(PermissionError):
            delete_unused(store, grace_seconds=0)
    left = {path for path in all_files(store) if not path.startswith("announcements/")}
    assert left == before


def test_orphans_are_reused_while_young_and_deleted_when_old(tmp_path: Path) -> None:
    whole = fill(str(tmp_path / "whole"))
    store = fill(str(tmp_path / "s"))
    features = [path for path in all_files(store) if path.startswith("features/") and not path.endswith(".json")]

    def drop_all_and_age(days: float) -> None:
        store.drop({info.fingerprint: None for info in store.snapshot().feature_sets()})
        for path in features:
            os.utime(store.storage.address(path), (time.time() - days * DAY,) * 2)

    drop_all_and_age(3.4)
    assert featurize(store.storage.root).bytes == 0, "young orphans are reused"
    drop_all_and_age(3.6)
    assert featurize(store.storage.root).bytes > 0, "older than half the grace period: written again"
    assert content(store.snapshot()) == content(whole.snapshot())
    assert set(features) < all_files(store).keys()
    delete_unused(store, grace_seconds=GRACE_SECONDS)
    assert set(features) < all_files(store).keys(), "named by a version of this week"
    delete_unused(store, grace_seconds=0)
    assert not set(features) & all_files(store).keys()
    assert content(store.snapshot()) == content(whole.snapshot())


def test_gc_and_jobs_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Several jobs, one after the other, beside a gc that runs all the time, with the default grace period."""
    store = fill(str(tmp_path / "s"), some_rows(0, 3))
    is_over = threading.Event()

    def collect_for_ever() -> None:
        while not is_over.is_set():
            delete_unused(FeatureStore(store.storage.root))

    thread = threading.Thread(target=collect_for_ever)
    thread.start()
    for end in (6, 9, 12, 18):
        featurize(store.storage.root, some_rows(0, end), group_size=1)
    is_over.set()
    thread.join()
    assert content(store.snapshot()) == content(fill(str(tmp_path / "whole")).snapshot())
    assert verify(store).findings == ()


@pytest.mark.parametrize("path", [f"features/{SPEECH}/.incoming-abc", ".probe-0123/table/_delta_log/0.json"])
def test_temporary_files_of_killed_writers_are_deleted(tmp_path: Path, path: str) -> None:
    store = fill(str(tmp_path / "s"))
    left = Path(store.storage.root) / path
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    assert delete_unused(store).files == 0
    os.utime(left, (time.time() - 8 * DAY,) * 2)
    assert delete_unused(store).files == 1
    assert not left.exists()


def test_unfinished_uploads_are_aborted_and_counted_by_a_dry_run(
    s3_uri: str, s3_endpoint: str, pass_days: Callable[[float], None]
) -> None:
    store, client, bucket = fill(s3_uri), s3_servers.client(s3_endpoint), s3_uri.split("/")[2]

    def num_open() -> int:
        return len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))

    key = "store/catalog/part"
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    pass_days(7.1)
    said = delete_unused(store, dry_run=True)
    assert (said.uploads, said.upload_bytes, num_open()) == (1, 1000, 1)
    freed = delete_unused(store)
    assert (freed.uploads, freed.upload_bytes, num_open()) == (1, 1000, 0)


def test_nothing_is_deleted_while_the_catalog_is_damaged(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"))
    store.drop({SPEECH: None})
    part = next(path for path in all_files(store) if path.startswith(f"catalog/feature_set={IMAGE}"))
    Path(store.storage.address(part)).write_bytes(b"junk")
    before = all_files(store).keys()
    with pytest.raises(Damaged, match="repair"):
        delete_unused(store, grace_seconds=0)
    assert {path for path in all_files(store) if not path.startswith("collections/")} == before


def some_rows(start: int, end: int) -> Manifest:
    return Manifest(synthetic().table.slice(start, end - start))
