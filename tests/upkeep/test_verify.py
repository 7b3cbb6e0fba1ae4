"""verify: what it counts, what is no damage, and that it can run beside a writer."""

import shutil
from pathlib import Path

import pytest
from support.feature_sets import content
from support.injuries import Injury
from support.stores import IMAGE, SPEECH, TEXT, fill

from speechclip.errors import Damaged, NotStored, UnsupportedStore
from speechclip.records import to_json
from speechclip.store import FeatureStore, catalog
from speechclip.store.feature_store import StoreFile
from speechclip.store.layout import (
    LAST_CHECKPOINT,
    STORE_FILE,
    checkpoint_path,
    journal_path,
    log_path,
    spec_path,
    tag_path,
)
from speechclip.store.matrices import METADATA, matrix_metadata, shape_of
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.versions import Version
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import repair
from speechclip.upkeep.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fill(str(tmp_path_factory.mktemp("whole") / "store")).storage.root)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(shutil.copytree(whole, tmp_path / "store")))


def test_every_named_byte_of_a_whole_store_is_read(store: FeatureStore) -> None:
    steps: list[tuple[int, int]] = []
    report = verify(store, on_progress=lambda done, total: steps.append((done, total)))
    data = [file for file in store.storage.stat("features") if not file.path.endswith("json")]
    assert (report.files, report.bytes) == (len(data), sum(file.size for file in data))
    assert (report.assets, report.orphans, report.findings) == (30, 0, ())
    assert report.versions == (store.snapshot().version,)
    assert steps[-1] == (report.bytes, report.bytes)
    assert steps == sorted(steps)


def test_each_version_is_opened_once_and_the_newest_twice(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delta's client reads the whole log each time. The newest is opened once more, to see that it can be read."""
    newest = store.snapshot().version
    for version in (1, 2):
        store.tags.create(f"tag-{version}", version)
    load, opened = catalog.Catalog._load, list[int]()

    def note(self: catalog.Catalog, number: int | None) -> Version:
        version = load(self, number)
        opened.append(version.number)
        return version

    monkeypatch.setattr(catalog.Catalog, "_load", note)
    assert verify(FeatureStore(store.storage.root)).versions == (1, 2, newest)
    assert sorted(opened) == [0, 1, 2, newest, newest]


def test_a_file_that_no_verified_version_names_is_an_orphan_and_no_damage(store: FeatureStore) -> None:
    spec = store.read_spec(SPEECH).spec
    key, array = next((key, store.snapshot().feature_set(SPEECH)[key]) for key in store.snapshot().stored_keys(SPEECH))
    tar = pack_shard(spec, [(key, array)], {})
    path, _ = write_shard(store.storage, spec, "another-run", tar, [key])
    report = verify(store)
    assert (report.orphans, report.findings) == (2, ())
    assert report.orphan_bytes == len(tar) + 8 * len(spec.layers) + 8
    Injury("shard", path, "truncate", 9).inflict(store.storage.root)
    assert verify(store).findings == ()


def test_every_byte_of_a_checksum_file_is_verified(store: FeatureStore) -> None:
    path = next(path for path in store.storage.list(f"features/{SPEECH}") if path.endswith(".xxh3"))
    whole = store.storage.read(path)
    for damaged in (whole[:-1], whole[:-8], whole[:-1] + b"?", whole + b"?"):
        store.storage.replace(path, damaged)
        assert [finding.path for finding in verify(store).findings] == [path]


def test_a_tagged_version_is_verified_too(store: FeatureStore) -> None:
    version = store.snapshot().version
    store.drop({SPEECH: None, IMAGE: None})
    chunk = next(path for path in store.storage.list(f"features/{IMAGE}") if "/vectors/c/" in path)
    Injury("vectors", chunk, "flip", 5).inflict(store.storage.root)
    assert verify(store).findings == ()
    store.tags.create("paper", version)
    report = verify(store)
    assert report.versions == (version, version + 1)
    assert [(finding.path, len(finding.keys)) for finding in report.findings] == [(chunk, 1)]


def test_metadata_may_be_formatted_differently_but_must_be_complete(store: FeatureStore) -> None:
    """Another version of Zarr, or another tool, may format the JSON differently."""
    matrix = next(store.storage.list(f"features/{TEXT}/vectors")).partition(".zarr/")[0] + ".zarr"
    whole = matrix_metadata(store.read_spec(TEXT).spec, shape_of(matrix))
    for name in METADATA:
        compact = b" ".join(whole[name].split())
        store.storage.replace(f"{matrix}/{name}", compact)
        assert verify(store).findings == ()
        store.storage.replace(f"{matrix}/{name}", compact.replace(b'"zarr_format"', b'"zarr_formbt"'))
        assert [finding.kind for finding in verify(store).findings] == ["metadata"]
        store.storage.replace(f"{matrix}/{name}", whole[name])


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("spec", b'"source":"toy"', b'"source":"tox"'),
        ("tag", b'"name":"paper"', b'"name":"papes"'),
        ("collection", b'"since":', b'"since":1'),
    ],
)
def test_a_changed_file_that_can_still_be_read_is_found(store: FeatureStore, kind: str, old: bytes, new: bytes) -> None:
    store.tags.create("paper", 2)
    delete_unused(store, grace_seconds=0)
    path = {"spec": spec_path(TEXT), "tag": tag_path("paper")}.get(kind, next(store.storage.list("collections")))
    whole = store.storage.read(path)
    assert old in whole
    store.storage.replace(path, whole.replace(old, new))
    assert [(finding.kind, finding.path) for finding in verify(store).findings] == [(kind, path)]


def test_a_reader_trusts_only_names_that_the_root_covers(store: FeatureStore) -> None:
    """An entry may claim beside the name that a file belongs to another feature set. The reader ignores it."""
    before = content(store.snapshot())
    for version in range(1, store.snapshot().version + 1):
        entry = store.storage.read(log_path(version))
        store.storage.replace(log_path(version), entry.replace(b'{"feature_set":"toy', b'{"feature_set":"joy'))
    assert content(store.snapshot()) == before
    assert {finding.kind for finding in verify(store).findings} == {"log"}


def test_a_newer_format_is_refused_not_repaired(store: FeatureStore) -> None:
    store.storage.replace(STORE_FILE, to_json(StoreFile(format=7)))
    with pytest.raises(UnsupportedStore, match="format 7"):
        verify(store)


def test_a_writer_between_its_commit_and_its_copy_is_no_damage(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed there or is still at work. So the newest entry has no copy, and no checksum of its checkpoint."""
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    newest = store.snapshot().version
    store.drop({TEXT: None})
    version = store.drop({IMAGE: None})
    assert version == newest + 2
    assert store.storage.size(checkpoint_path(version)) is not None
    store.storage.delete([journal_path(version)])
    assert verify(store).findings == ()
    assert store.snapshot().version == version
    # What lies under it is watched all the same.
    Injury("log", log_path(version - 1), "flip", 99).inflict(store.storage.root)
    assert [finding.path for finding in verify(store).findings] == [log_path(version - 1)]


def test_the_pointer_to_the_newest_checkpoint_is_verified(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    store.drop({TEXT: None})
    assert verify(store).findings == ()
    Injury("last checkpoint", LAST_CHECKPOINT, "flip", 100).inflict(store.storage.root)
    assert [finding.path for finding in verify(store).findings] == [LAST_CHECKPOINT]


def test_a_pointer_that_a_slower_writer_left_to_its_older_checkpoint_is_no_damage(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    store.drop({TEXT: None})
    older = store.storage.read(LAST_CHECKPOINT)
    version = store.drop({IMAGE: None})
    store.storage.replace(LAST_CHECKPOINT, older)
    assert verify(store).findings == ()
    assert store.snapshot().version == version
    for bit in range(8 * len(older)):
        store.storage.replace(LAST_CHECKPOINT, older)
        Injury("last checkpoint", LAST_CHECKPOINT, "flip", bit).inflict(store.storage.root)
        assert [finding.path for finding in verify(store).findings] == [LAST_CHECKPOINT], f"bit {bit}"


def test_a_checkpoint_without_the_pointer_to_it_stops_nobody(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first of a store. The next commit copies the entry, with the checksum of the checkpoint."""
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 2)
    version = store.drop({TEXT: None})
    if version is not None and version % 2:
        version = store.drop({IMAGE: None})
    assert version is not None
    store.storage.delete([LAST_CHECKPOINT, journal_path(version)])
    assert verify(store).findings == ()
    monkeypatch.undo()
    assert store.drop({SPEECH: None}) == version + 1
    assert verify(store).findings == ()
    Injury("checkpoint", checkpoint_path(version), "truncate", 99).inflict(store.storage.root)
    assert [finding.path for finding in verify(store).findings] == [checkpoint_path(version)]
    assert repair(store).problems == ()
    assert verify(store).findings == ()


def test_verify_changes_nothing(store: FeatureStore) -> None:
    for path in ("store.json", next(store.storage.list("manifests")), log_path(2)):
        Injury("any", path, "truncate", 5).inflict(store.storage.root)
    before = {file.path: (file.size, file.modified) for file in store.storage.stat("")}
    assert verify(store).findings
    assert {file.path: (file.size, file.modified) for file in store.storage.stat("")} == before


def test_a_place_without_a_store_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(NotStored, match="featurize"):
        verify(FeatureStore(str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("how", ["gone", "cut", "emptied"])
@pytest.mark.parametrize("kind", [".tar", ".xxh3", "/vectors/c/0/0"])
def test_a_missing_or_short_file_on_s3_is_damaged_for_its_reader(s3_uri: str, kind: str, how: str) -> None:
    store = fill(s3_uri)
    before = content(store.snapshot())
    path = next(path for path in store.storage.list("features") if path.endswith(kind))
    data = store.storage.read(path)
    store.storage.delete([path])
    if how != "gone":
        store.storage.create(path, data[: len(data) // 2 if how == "cut" else 0])
    with pytest.raises(Damaged, match="speechclip repair"):
        content(store.snapshot())
    findings = verify(store).findings
    assert {finding.path for finding in findings} == {path}
    repair(store)
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before


def test_a_store_on_s3_is_verified_and_repaired_too(s3_uri: str) -> None:
    store = fill(s3_uri)
    before = content(store.snapshot())
    shard = next(path for path in store.storage.list(f"features/{SPEECH}") if path.endswith(".tar"))
    chunk = next(path for path in store.storage.list(f"features/{IMAGE}") if "/vectors/c/" in path)
    for path in (shard, chunk):
        data = bytearray(store.storage.read(path))
        data[700 if path == shard else 3] ^= 4
        store.storage.replace(path, bytes(data))
    store.storage.delete([log_path(2)])
    assert [finding.path for finding in verify(store).findings] == [log_path(2)]
    done = repair(store)
    assert (done.encoded, done.problems) == (2, ())
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before
