"""Repair as a whole: what is encoded, what the catalog says afterwards, and what it says where it can't help."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from deltalake import DeltaTable
from support.feature_sets import VECTORS_SPEC, content
from support.injuries import Injury
from support.stores import IMAGE, SPEECH, TEXT, TOY, featurize, fill, synthetic

from speechclip.encoders.toy import ToyEncoder
from speechclip.errors import Damaged
from speechclip.featurization.driver import Work, encode_inline
from speechclip.featurization.tasks import BatchSizes, decode_task, encode_task
from speechclip.manifest import Manifest
from speechclip.records import Asset, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store import FeatureStore, catalog
from speechclip.store.catalog import Catalog
from speechclip.store.layout import (
    checkpoint_path,
    data_file_copy_path,
    data_file_path,
    journal_path,
    log_path,
    sums_path,
)
from speechclip.store.matrices import Shape, chunk_path, create_matrix, matrix_name
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.vectors import write_chunk
from speechclip.upkeep.findings import keys_of
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import Repaired, repair
from speechclip.upkeep.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fill(str(tmp_path_factory.mktemp("whole") / "store")).storage.root)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(shutil.copytree(whole, tmp_path / "store")))


def flip(store: FeatureStore, name: str, key: str) -> None:
    """Flip one bit of a feature in the newest version."""
    row = next(row for row in store.snapshot().stored(name).to_pylist() if row["asset"] == key)
    if name == SPEECH:
        Injury("shard", row["shard"], "flip", 8 * row["offset"] + 3).inflict(store.storage.root)
    else:
        path, within = chunk_path(row["shard"], "vectors", row["offset"]), row["offset"] % 4
        Injury("vectors", path, "flip", 8 * within * 64 + 3).inflict(store.storage.root)


class Counting:
    """Encodes without Ray; `assets` are those that were encoded."""

    def __init__(self) -> None:
        self.assets: list[str] = []

    def __call__(self, work: Work) -> Iterator[Receipt]:
        for receipt in encode_inline(work):
            self.assets += [entry.key for entry in receipt.stored]
            yield receipt


class OtherHardware(ToyEncoder):
    """The same encoder, with slightly different numbers as from another kind of machine."""

    def encode(self, inputs: list[np.ndarray], dtype: str = "f4") -> list[np.ndarray]:
        return [feature * np.float32(1 + 3e-7) for feature in super().encode(inputs, dtype)]


def encode_elsewhere(work: Work) -> Iterator[Receipt]:
    for task in work.plan:
        encoder = OtherHardware(work.specs[task.feature_set].modality, codec="fp32")
        decoded = decode_task(task, work.specs[task.feature_set])
        yield encode_task(decoded, encoder, work.store.storage, BatchSizes())


def test_only_what_is_lost_is_encoded_and_the_catalog_stays_as_it_was(store: FeatureStore) -> None:
    before, version = content(store.snapshot()), store.snapshot().version
    speech, image = (sorted(store.snapshot().stored_keys(name))[3] for name in (SPEECH, IMAGE))
    flip(store, SPEECH, speech)
    flip(store, IMAGE, image)
    encode = Counting()
    done = repair(store, encode)
    assert sorted(encode.assets) == sorted([speech, image])
    assert (done.encoded, done.left, done.problems) == (2, {}, ())
    assert content(store.snapshot()) == before
    assert store.snapshot().version == version
    assert verify(store).findings == ()
    nothing = Repaired(repaired=(), forgotten=(), encoded=0, dropped_embeddings=0, left={}, problems=())
    assert repair(store, encode) == nothing
    assert len(encode.assets) == 2


def test_a_dropped_feature_is_repaired_for_its_tag_and_stays_dropped(store: FeatureStore) -> None:
    key = sorted(store.snapshot().stored_keys(SPEECH))[0]
    store.tags.create("paper", store.snapshot().version)
    tagged = content(store.snapshot("paper"))
    flip(store, SPEECH, key)
    store.drop({SPEECH: [key]})
    newest = content_keys(store)
    assert repair(store).encoded == 1
    assert content(store.snapshot("paper")) == tagged
    assert content_keys(store) == newest
    assert verify(store).findings == ()


def content_keys(store: FeatureStore) -> set[tuple[str, str]]:
    return set(content(store.snapshot()))


def test_features_of_other_hardware_go_into_the_newest_version_and_the_tag_is_reported(store: FeatureStore) -> None:
    before = content(store.snapshot())
    store.tags.create("paper", store.snapshot().version)
    kept, dropped, elsewhere = sorted(store.snapshot().stored_keys(SPEECH))[:3]
    image = sorted(store.snapshot().stored_keys(IMAGE))[0]
    for name, key in ((SPEECH, kept), (SPEECH, dropped), (SPEECH, elsewhere), (IMAGE, image)):
        flip(store, name, key)
    store.drop({SPEECH: [dropped, elsewhere]})
    # The newest version names another, whole feature of it.
    featurize(store.storage.root, Manifest.from_rows(rows_of_speech(elsewhere)))
    done = repair(store, encode_elsewhere)
    assert done.encoded == 4
    damaged = {SPEECH: {kept, dropped, elsewhere}, IMAGE: {image}}
    assert {name: set(keys) for name, keys in done.left.items()} == damaged
    assert all("delete the tags" in problem for problem in done.problems)
    assert keys_of(verify(store).findings) == damaged
    after = content(store.snapshot())
    assert set(after) == set(before) - {(SPEECH, dropped)}
    for place, data in after.items():
        is_anew = place in ((SPEECH, kept), (IMAGE, image))
        assert (data != before[place]) == is_anew
        np.testing.assert_allclose(np.frombuffer(data, "<f4"), np.frombuffer(before[place], "<f4"), rtol=1e-5)
    store.tags.delete("paper")
    assert verify(store).findings == ()


def rows_of_speech(key: str) -> list[dict[str, object]]:
    return [row for row in synthetic().rows() if row["speech_key"] == key]


def test_a_commit_does_not_bring_back_keys_that_were_dropped_meanwhile(store: FeatureStore) -> None:
    key, other = sorted(store.snapshot().stored_keys(SPEECH))[:2]
    spec, features = store.read_spec(SPEECH).spec, store.snapshot().feature_set(SPEECH)
    tar = pack_shard(spec, [(name, features[name] * np.float32(2)) for name in (key, other)], {})
    path, stored = write_shard(store.storage, spec, "repair", tar, [key, other])
    receipt = Receipt(
        task="repair", feature_set=SPEECH, shard=path, stored=stored, rejected=(), num_bytes=1, seconds=1.0,
        num_encoded=2,
    )  # fmt: skip
    store.drop({SPEECH: [key]})
    store.commit([receipt], "", damaged={SPEECH: [key, other]})
    assert key not in store.snapshot().stored_keys(SPEECH)
    np.testing.assert_array_equal(store.snapshot().feature_set(SPEECH)[other], features[other] * 2)


def test_a_checkpoint_lost_with_the_copy_that_proves_it_is_written_again(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    version = store.drop({SPEECH: None})
    assert version is not None
    before = content(store.snapshot())
    Injury("checkpoint", checkpoint_path(version), "truncate", 500).inflict(store.storage.root)
    Injury("journal", journal_path(version), "flip", 300).inflict(store.storage.root)
    assert repair(store).problems == ()
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before


def reads_of_parts(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many data files one repair reads, copies included."""
    paths: list[str] = []

    def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
        paths.append(path)
        return Storage.read(store.storage, path, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "read", read)
        assert repair(store).left == {}
    return sum("feature_set=" in path for path in paths)


def test_many_findings_read_the_catalog_as_often_as_one(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.tags.create("paper", store.snapshot().version)
    rows = store.snapshot().stored(SPEECH).to_pylist()
    first_of = {row["shard"]: row["asset"] for row in rows}
    assert len(first_of) > 2
    *others, one = first_of.values()
    flip(store, SPEECH, one)
    once = reads_of_parts(store, monkeypatch)
    for key in others:
        flip(store, SPEECH, key)
    assert reads_of_parts(store, monkeypatch) == once


def test_many_damaged_checkpoints_are_written_again_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    versions = [store.drop({name: None}) for name in (TEXT, IMAGE, SPEECH)]
    for version in versions:
        assert version is not None
        Injury("checkpoint", checkpoint_path(version), "truncate", 500).inflict(store.storage.root)
        Injury("journal", journal_path(version), "flip", 300).inflict(store.storage.root)
    made: list[int] = []

    def checkpoint(version: int) -> None:
        made.append(version)
        Catalog.checkpoint(store.catalog, version)

    monkeypatch.setattr(store.catalog, "checkpoint", checkpoint)
    assert repair(store).problems == ()
    assert made == versions
    assert verify(store).findings == ()


def test_a_killed_repair_loses_nothing_and_the_next_continues(store: FeatureStore) -> None:
    before = content(store.snapshot())
    keys = sorted(store.snapshot().stored_keys(SPEECH))
    for key in keys[:12]:
        flip(store, SPEECH, key)
    first = Counting()

    def die(work: Work) -> Iterator[Receipt]:
        yield from list(first(work))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(store, die)
    features = store.snapshot().feature_set(SPEECH)
    assert all(features[key].tobytes() == before[SPEECH, key] for key in keys[12:])
    encoded: list[int] = []

    def count(work: Work) -> Iterator[Receipt]:
        for receipt in encode_inline(work):
            encoded.append(receipt.num_encoded)
            yield receipt

    assert repair(store, count).left == {}
    # The first had encoded all of them. Their shards are whole on storage and are reused.
    assert sum(encoded) == 0
    assert content(store.snapshot()) == before


def test_a_lost_shard_comes_back_with_zeros_for_a_dropped_neighbour(store: FeatureStore) -> None:
    rows = store.snapshot().stored(SPEECH).to_pylist()
    shard = rows[0]["shard"]
    first, *others = [row["asset"] for row in sorted(rows, key=lambda row: row["offset"]) if row["shard"] == shard]
    before = content(store.snapshot())
    version = store.drop({SPEECH: [first]})
    Injury("shard", shard, "delete").inflict(store.storage.root)
    encode = Counting()
    assert repair(store, encode).left == {}
    assert sorted(encode.assets) == sorted(others)
    assert content(store.snapshot()) == {place: data for place, data in before.items() if place != (SPEECH, first)}
    assert store.snapshot().version == version
    assert verify(store).findings == ()


def test_a_shard_with_unknown_neighbours_is_not_rebuilt(store: FeatureStore) -> None:
    """`gc` deleted the rows of a dropped neighbour. A new tar without it would have other offsets."""
    rows = store.snapshot().stored(SPEECH).to_pylist()
    shard = rows[0]["shard"]
    keys = [row["asset"] for row in sorted(rows, key=lambda row: row["offset"]) if row["shard"] == shard]
    store.drop({SPEECH: keys[1:2]})
    delete_unused(store, grace_seconds=0)
    before = content(store.snapshot())
    flip(store, SPEECH, keys[0])
    done = repair(store)
    assert (done.encoded, done.left, done.problems) == (1, {}, ())
    assert content(store.snapshot()) == before
    assert verify(store).findings == ()
    placed = {row["asset"]: row["shard"] for row in store.snapshot().stored(SPEECH).to_pylist()}
    assert placed[keys[2]] == shard != placed[keys[0]]


def lose_the_rows(store: FeatureStore, version: int, doomed: list[str], name: str = IMAGE) -> dict[str, bytes]:
    """Drop these assets, and delete the data file that names them in that version, and its copy. Returns both."""
    parts = set(store.catalog.paths(version))
    store.drop({name: doomed})
    [lost] = parts - set(store.catalog.paths(version + 1))
    files = {path: store.storage.read(path) for path in (data_file_path(lost), data_file_copy_path(lost))}
    store.storage.delete(files)
    return files


def check_repaired_until_the_rows_come_back(
    store: FeatureStore, files: dict[str, bytes], before: dict[tuple[str, str], bytes]
) -> None:
    """A repair leaves nothing damaged. With the lost data files put back, the tagged version is whole again."""
    assert repair(store).left == {}
    for path, data in files.items():
        store.storage.create(path, data)
    assert content(store.snapshot("paper")) == before
    repair(store)
    assert verify(store).findings == ()


@pytest.mark.parametrize("is_keys_lost", [False, True])
def test_a_repaired_chunk_keeps_rows_that_only_a_lost_data_file_names(
    whole: Path, tmp_path: Path, is_keys_lost: bool
) -> None:
    store = fill(str(tmp_path / "s"), group_size=99)
    version, before = store.snapshot().version, content(store.snapshot())
    store.tags.create("paper", version)
    rows = sorted(store.snapshot().stored(IMAGE).to_pylist(), key=lambda row: row["offset"])
    one, *others = [row["asset"] for row in rows[:4]]
    files = lose_the_rows(store, version, others)
    flip(store, IMAGE, one)
    if is_keys_lost:
        Injury("keys", chunk_path(rows[0]["shard"], "keys", 0), "flip", 8 * 88 * 4 + 3).inflict(store.storage.root)
    check_repaired_until_the_rows_come_back(store, files, before)


def test_a_repaired_shard_keeps_an_end_that_only_a_lost_data_file_names(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"), group_size=99)
    version, before = store.snapshot().version, content(store.snapshot())
    store.tags.create("paper", version)
    rows = sorted(store.snapshot().stored(SPEECH).to_pylist(), key=lambda row: (row["shard"], row["offset"]))
    one, *others = [row["asset"] for row in rows if row["shard"] == rows[0]["shard"]]
    assert len(others) >= 2
    files = lose_the_rows(store, version, others[1:], SPEECH)
    flip(store, SPEECH, one)
    check_repaired_until_the_rows_come_back(store, files, before)


def test_a_row_that_no_checksum_proves_is_not_reused(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"), group_size=99)
    version, before = store.snapshot().version, content(store.snapshot())
    rows = sorted(store.snapshot().stored(IMAGE).to_pylist(), key=lambda row: row["offset"])
    one, other, *others = (row["asset"] for row in rows)
    for key in (one, other):
        flip(store, IMAGE, key)
    lose_the_rows(store, version, [other, *others])
    store.tags.create("paper", store.snapshot().version)
    # No commit names the task any more, so a run looks for what it left.
    store.drop({IMAGE: None})
    assert repair(store).encoded == 1
    featurize(store.storage.root)
    assert content(store.snapshot()) == before


def test_the_end_of_a_shard_that_no_checksum_proves_is_not_reused(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"), group_size=99)
    version, before = store.snapshot().version, content(store.snapshot())
    rows = sorted(store.snapshot().stored(SPEECH).to_pylist(), key=lambda row: (row["shard"], row["offset"]))
    assert rows[0]["shard"] == rows[1]["shard"]
    one, other, *others = (row["asset"] for row in rows)
    for key in (one, other):
        flip(store, SPEECH, key)
    lose_the_rows(store, version, [other, *others], SPEECH)
    store.tags.create("paper", store.snapshot().version)
    # No commit names the task any more, so a run looks for what it left.
    store.drop({SPEECH: None})
    assert repair(store).encoded == 1
    featurize(store.storage.root)
    assert content(store.snapshot()) == before


@pytest.mark.parametrize("are_rows_lost", [False, True])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_new_checksums_prove_no_array_that_no_row_names(tmp_path: Path, how: str, are_rows_lost: bool) -> None:
    store = fill(str(tmp_path / "s"), group_size=99)
    version, before = store.snapshot().version, content(store.snapshot())
    rows = sorted(store.snapshot().stored(SPEECH).to_pylist(), key=lambda row: (row["shard"], row["offset"]))
    assert rows[0]["shard"] == rows[1]["shard"]
    other, *others = (row["asset"] for row in rows[1:])
    flip(store, SPEECH, other)
    Injury("checksums", sums_path(rows[0]["shard"]), how, 3).inflict(store.storage.root)
    if are_rows_lost:
        lose_the_rows(store, version, [other, *others], SPEECH)
    else:
        store.drop({SPEECH: [other, *others]})
    store.tags.create("paper", store.snapshot().version)
    store.drop({SPEECH: None})
    assert [finding.path for finding in repair(store).repaired] == [sums_path(rows[0]["shard"])]
    featurize(store.storage.root)
    assert content(store.snapshot()) == before


def test_a_partly_repaired_shard_has_no_checksums_for_the_rest(store: FeatureStore) -> None:
    before, manifest = content(store.snapshot()), synthetic()
    shard = store.snapshot().stored(SPEECH).to_pylist()[0]["shard"]
    one, other, *_ = (row["asset"] for row in store.snapshot().stored(SPEECH).to_pylist() if row["shard"] == shard)
    for key in (one, other):
        flip(store, SPEECH, key)
    store.storage.delete(list(store.storage.list("manifests")))
    store.add_manifest(Manifest.from_rows([row for row in manifest.rows() if row["speech_key"] == one]))
    assert repair(store).left == {SPEECH: (other,)}
    with pytest.raises(Damaged):
        store.snapshot().feature_set(SPEECH)[other]
    store.drop({SPEECH: None})
    featurize(store.storage.root)
    assert content(store.snapshot()) == before


def test_a_checkpoint_behind_a_lost_entry_is_never_deleted(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = store.snapshot().version
    store.catalog.checkpoint(newest)
    store.storage.replace(journal_path(newest), store.catalog.journal.copy_of(newest))
    for path in (log_path(newest), journal_path(newest)):
        Injury("entry", path, "truncate", 10).inflict(store.storage.root)
    deleted, delete = list[str](), store.storage.delete

    def note(paths: Iterable[str], older_than: float | None = None) -> None:
        deleted.extend(paths := list(paths))
        delete(paths, older_than)

    monkeypatch.setattr(store.storage, "delete", note)
    assert repair(store).problems
    assert [path for path in deleted if "checkpoint" in path] == []


def test_a_log_that_is_gone_comes_back_from_the_journal(store: FeatureStore) -> None:
    before = content(store.snapshot())
    shutil.rmtree(Path(store.storage.root) / "catalog")
    with pytest.raises(Damaged, match="log is gone; run `speechclip repair`"):
        store.snapshot()
    assert repair(store).problems == ()
    assert content(store.snapshot()) == before
    assert verify(store).findings == ()


def test_a_store_whose_only_entry_is_lost_begins_again(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "s"))
    store.create()
    Injury("log", log_path(0), "truncate", 10).inflict(store.storage.root)
    assert repair(store, forget=True).forgotten == (log_path(0),)
    assert featurize(store.storage.root).encoded == 30
    assert verify(store).findings == ()


def test_the_newest_copy_is_written_although_a_killed_writer_may_have_left_none(store: FeatureStore) -> None:
    newest = store.snapshot().version
    store.storage.delete([journal_path(newest)])
    assert verify(store).findings == ()
    assert repair(store).problems == ()
    assert store.catalog.journal.has(newest)


def test_features_whose_sources_remain_are_repaired(store: FeatureStore, tmp_path: Path) -> None:
    rows = store.snapshot().stored(SPEECH).to_pylist()
    shard = rows[0]["shard"]
    keys = [row["asset"] for row in rows if row["shard"] == shard]
    before, manifest = content(store.snapshot()), synthetic()
    # Only a manifest that names some of them is kept.
    store.storage.delete(list(store.storage.list("manifests")))
    some = [row for row in manifest.rows() if row["speech_key"] in keys[:2]]
    store.add_manifest(Manifest.from_rows(some))
    Injury("shard", shard, "truncate", 100).inflict(store.storage.root)
    done = repair(store)
    assert {name: set(left) for name, left in done.left.items()} == {SPEECH: set(keys[2:])}
    assert f"first {min(keys[2:])} (no kept manifest names a source)" in done.problems[0]
    features = store.snapshot().feature_set(SPEECH)
    assert all(features[key].tobytes() == before[SPEECH, key] for key in keys[:2])
    done = repair(store, manifests=[manifest])
    assert (done.encoded, done.left) == (len(keys) - 2, {})
    assert content(store.snapshot()) == before


def embedded(
    store: FeatureStore, spec: EncoderSpec, task: str, assets: tuple[Asset, ...], vectors: np.ndarray
) -> Receipt:
    """A matrix of these vectors on storage."""
    matrix = matrix_name(task, Shape(4, 4))
    create_matrix(store.storage, spec, matrix)
    cut = Task(id=task, feature_set=spec.fingerprint, assets=assets, matrix=matrix)
    features = dict(zip((asset.key for asset in assets), vectors, strict=True))
    path, stored, _ = write_chunk(store.storage, spec, cut, features)
    return Receipt(
        task=task, feature_set=spec.fingerprint, shard=path, stored=stored, rejected=(), num_bytes=1, seconds=1.0,
        num_encoded=len(stored),
    )  # fmt: skip


def test_damaged_embeddings_are_dropped_and_reported_if_a_tag_names_them(store: FeatureStore) -> None:
    spec = msgspec.structs.replace(VECTORS_SPEC, family="head")
    store.add_spec(spec, "a head")
    assets = tuple(Asset(key=f"{number:064x}", modality="image") for number in range(4))
    vectors = np.random.default_rng(0).standard_normal((4, spec.width)).astype("<f2")
    receipt = embedded(store, spec, "embed-0", assets, vectors)
    store.commit([receipt], "m")
    store.tags.create("paper", store.snapshot().version)
    Injury("vectors", chunk_path(receipt.shard, "vectors", 0), "flip", 3).inflict(store.storage.root)
    done = repair(store)
    assert (done.encoded, done.dropped_embeddings) == (0, 1)
    assert "speechclip embed" in done.problems[0]
    assert store.snapshot().stored_keys(spec.fingerprint) == {asset.key for asset in assets[1:]}
    # Embedded again, they stay, whatever the tag still names.
    store.commit([embedded(store, spec, "embed-1", assets[:1], vectors[:1])], "m")
    done = repair(store)
    assert (done.dropped_embeddings, len(done.problems)) == (0, 1)
    assert store.snapshot().stored_keys(spec.fingerprint) == {asset.key for asset in assets}
    store.tags.delete("paper")
    # The rows that stay are whole; only the chunk's own checksum, which Zarr reads, must follow.
    assert repair(store).problems == ()
    assert verify(store).findings == ()
    assert len(content(store.snapshot())) == 34


def test_an_encoder_that_this_machine_builds_differently_is_named(store: FeatureStore) -> None:
    store.add_spec(VECTORS_SPEC, "toy")
    assets = (Asset(key="0" * 64, modality="image"),)
    receipt = embedded(store, VECTORS_SPEC, "t-0", assets, np.ones((1, 16), "<f2"))
    store.commit([receipt], "m")
    Injury("vectors", chunk_path(receipt.shard, "vectors", 0), "delete").inflict(store.storage.root)
    done = repair(store)
    assert done.left == {VECTORS_SPEC.fingerprint: ("0" * 64,)}
    assert "repair where the same weights are" in done.problems[0]


def test_a_damaged_spec_and_a_damaged_manifest_must_be_given_again(store: FeatureStore) -> None:
    Injury("spec", f"features/{IMAGE}/spec.json", "truncate", 20).inflict(store.storage.root)
    manifest = next(store.storage.list("manifests"))
    Injury("manifest", manifest, "truncate", 200).inflict(store.storage.root)
    assert sorted(problem.partition(":")[0] for problem in repair(store).problems) == [
        f"features/{IMAGE}/spec.json",
        manifest,
    ]
    done = repair(store, manifests=[synthetic()], encoders=[(request, request.build().spec) for request in TOY])
    assert done.problems == ()
    assert verify(store).findings == ()


def test_a_newest_entry_lost_with_its_copy_is_forgotten_only_on_request(store: FeatureStore) -> None:
    newest = store.snapshot().version
    before = content(store.snapshot(newest - 1))
    Injury("log", log_path(newest), "truncate", 10).inflict(store.storage.root)
    Injury("journal", journal_path(newest), "flip", 99).inflict(store.storage.root)
    done = repair(store)
    assert all("backup" in problem for problem in done.problems)
    assert "speechclip repair --forget" in " ".join(done.problems)
    with pytest.raises(Damaged, match="repair"):
        store.snapshot()
    done = repair(store, forget=True)
    assert (done.forgotten, done.problems) == ((log_path(newest),), ())
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before
    assert store.snapshot().version == newest - 1
    # The next commit bears the number of the lost one, and that this process has seen.
    assert store.drop({SPEECH: None}) == newest
    assert store.catalog.paths(newest) == FeatureStore(store.storage.root).catalog.paths(newest)


@pytest.mark.parametrize("how", ["foreign", "forgotten", "lost before its copy", "lost with one that has no copy yet"])
def test_a_checkpoint_whose_entry_is_gone_stops_nobody(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINT_EVERY", 1)
    store.drop({TEXT: None})
    if how == "lost with one that has no copy yet":
        store.drop({SPEECH: None})
    before, newest = content(store.snapshot()), store.snapshot().version
    if how == "foreign":
        table = DeltaTable(f"{store.storage.root}/catalog")
        table.optimize.compact()
        table.create_checkpoint()
    else:
        store.drop({IMAGE: None})
    assert store.storage.size(checkpoint_path(newest + 1)) is not None
    if how == "forgotten":
        Injury("log", log_path(newest + 1), "truncate", 10).inflict(store.storage.root)
        Injury("journal", journal_path(newest + 1), "flip", 99).inflict(store.storage.root)
    elif how != "foreign":
        store.storage.delete([log_path(newest + 1), journal_path(newest + 1)])
    if how == "lost with one that has no copy yet":
        store.storage.delete([journal_path(newest)])
    with pytest.raises(Damaged, match="speechclip repair"):
        store.snapshot()
    done = repair(store, forget=how == "forgotten")
    assert (done.forgotten, done.problems) == ((log_path(newest + 1),) if how == "forgotten" else (), ())
    assert how != "foreign" or log_path(newest + 1) in [finding.path for finding in done.repaired]
    assert (store.snapshot().version, content(store.snapshot())) == (newest, before)
    assert verify(store).findings == ()
    assert store.drop({IMAGE: None}) == newest + 1


def test_a_data_file_lost_with_its_copy_is_forgotten_only_on_request(store: FeatureStore) -> None:
    version = store.snapshot().version
    path = store.catalog.paths(version)[0]
    before = content(store.snapshot())
    for place in (data_file_path(path), data_file_copy_path(path)):
        Injury("part", place, "truncate", 10).inflict(store.storage.root)
    assert "speechclip repair --forget" in repair(store).problems[0]
    with pytest.raises(Damaged):
        content(store.snapshot())
    done = repair(store, forget=True)
    assert done.forgotten == (data_file_path(path),)
    # The versions of this week name them still.
    assert all("--forget" not in problem for problem in done.problems)
    left = content(store.snapshot())
    assert left.items() < before.items()
    note = store.catalog.entry(version + 1).note
    assert note is not None
    assert [part.removed for part in note.changes] == [len(before) - len(left)]
    # The shards are there still: what is encoded again is found there.
    assert featurize(store.storage.root).encoded > 0
    assert content(store.snapshot()) == before


@pytest.mark.parametrize("name", ["vectors", "keys"])
def test_a_row_that_was_never_written_stays_empty(store: FeatureStore, name: str) -> None:
    shard = store.snapshot().stored(IMAGE)["shard"][0].as_py()
    # Six pictures in chunks of four: the last two rows are empty.
    path = chunk_path(shard, name, 4)
    whole = store.storage.read(path)
    damaged = bytearray(whole)
    # The checksum of the chunk takes the last four bytes.
    damaged[-5] ^= 1
    store.storage.replace(path, bytes(damaged))
    assert [finding.path for finding in verify(store).findings] == [path]
    assert repair(store).problems == ()
    assert store.storage.read(path) == whole


def test_the_copy_of_another_version_repairs_no_entry(store: FeatureStore) -> None:
    newest, before = store.snapshot().version, content(store.snapshot())
    entry = store.storage.read(log_path(newest - 1))
    store.storage.replace(journal_path(newest - 1), store.storage.read(journal_path(newest)))
    assert [finding.kind for finding in verify(store).findings] == ["journal"]
    assert repair(store).problems == ()
    assert store.storage.read(log_path(newest - 1)) == entry
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before


def test_an_unreadable_entry_is_not_copied_and_can_be_forgotten(store: FeatureStore) -> None:
    newest, before = store.snapshot().version, content(store.snapshot(store.snapshot().version - 1))
    entry = store.storage.read(log_path(newest))
    assert entry.count(b'"size"') == 1
    store.storage.replace(log_path(newest), entry.replace(b'"size"', b'"sizf"'))
    Injury("journal", journal_path(newest), "flip", 99).inflict(store.storage.root)
    problems = repair(store).problems
    assert any(problem.startswith(log_path(newest)) and "--forget" in problem for problem in problems), problems
    assert repair(store, forget=True).forgotten == (log_path(newest),)
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before


def test_a_lost_entry_below_others_cannot_be_forgotten_and_repair_says_so(store: FeatureStore) -> None:
    for path in (log_path(1), journal_path(1)):
        Injury("entry", path, "truncate", 10).inflict(store.storage.root)
    for forget in (False, True):
        done = repair(store, forget=forget)
        assert done.forgotten == ()
        assert any("it can't be forgotten" in problem for problem in done.problems)
        assert all("--forget" not in problem for problem in done.problems)


def test_an_entry_with_another_root_than_it_states_is_not_copied(store: FeatureStore) -> None:
    newest, entry = store.snapshot().version, store.storage.read(log_path(store.snapshot().version - 1))
    name = next(part for part in entry.decode().split('"') if part.startswith("feature_set=") and "/part-" in part)
    other = name[:-9] + ("0" if name[-9] != "0" else "1") + name[-8:]
    store.storage.replace(log_path(newest - 1), entry.replace(name.encode(), other.encode()))
    Injury("journal", journal_path(newest - 1), "flip", 99).inflict(store.storage.root)
    done = repair(store)
    assert any(problem.startswith(log_path(newest - 1)) for problem in done.problems)
    assert journal_path(newest - 1) not in [finding.path for finding in done.repaired]
    # Brought back from a backup, it is as it was.
    store.storage.replace(log_path(newest - 1), entry)
    assert repair(store).problems == ()
    assert verify(store).findings == ()
