"""Stores of every released format stay readable: by this code, and by other tools that read these formats."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
import zarr
from deltalake import DeltaTable
from support.feature_sets import content
from support.stores import encode_all

from speechclip.cli import main
from speechclip.errors import UnsupportedStore
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.store import FeatureStore
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import repair
from speechclip.upkeep.verify import verify

DATA = Path(__file__).resolve().parents[1] / "data" / "store-v1"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store of format 1 as it was written on 2026-11-22 by `tests/data/store-v1/make.py`."""
    with tarfile.open(DATA / "store.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return FeatureStore(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
    return found


@pytest.mark.parametrize("name", ["newest", "before-the-drop"])
def test_every_feature_of_format_1_reads_as_it_was_written(
    store: FeatureStore, expected: dict[str, Any], name: str
) -> None:
    snapshot = store.snapshot(None if name == "newest" else name)
    found = {f"{fs} {key}": hashlib.sha256(data).hexdigest() for (fs, key), data in content(snapshot).items()}
    assert found == expected["features"][name]
    assert name != "newest" or snapshot.version == expected["version"]


def test_what_format_1_rejected_stays_rejected(store: FeatureStore, expected: dict[str, Any]) -> None:
    snapshot = store.snapshot()
    assert store.read_manifest(expected["manifest"]).digest == expected["manifest"]
    for name, rejected in expected["rejected"].items():
        rows = snapshot.rejections(name, expected["manifest"]).to_pylist()
        assert sorted([row["asset"], row["reason"]] for row in rows) == rejected


def test_format_1_verifies_and_takes_new_features(store: FeatureStore, expected: dict[str, Any]) -> None:
    report = verify(store)
    assert report.findings == ()
    assert len(report.versions) == 2
    manifest = store.read_manifest(expected["manifest"])
    request = EncoderRequest(encoder_name="toy", modality="text", codec="fp32")
    summary = encode_all(store, manifest, [request], TaskSizes(chunk_rows=2))
    assert summary.encoded == 3
    assert summary.catalog_version == expected["version"] + 1
    assert verify(store).findings == ()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_tools_read_format_1(store: FeatureStore) -> None:
    root = Path(store.storage.root)
    rows = DeltaTable(str(root / "catalog")).to_pyarrow_table().to_pylist()
    shards = {row["shard"] for row in rows if row["status"] == "stored"}
    tars, groups = ({shard for shard in shards if shard.endswith(end)} for end in (".tar", ".zarr"))
    samples = [s for tar in sorted(tars) for s in webdataset.WebDataset(str(root / tar), shardshuffle=False).decode()]
    assert {sample["__key__"] for sample in samples} == {row["asset"] for row in rows if row["shard"] in tars}
    assert all(sample["hidden.npy"].ndim == 3 for sample in samples)
    assert sum(len(zarr.open(str(root / group), mode="r")["vectors"][:]) for group in groups) >= 6


def test_a_newer_format_is_refused_with_what_to_do(store: FeatureStore, expected: dict[str, Any]) -> None:
    """Every reader and writer refuses it first. By its own rules, this `gc` could delete what a newer one keeps."""
    manifests = [store.read_manifest(expected["manifest"])]
    store.storage.delete(list(store.storage.list("manifests")))
    store.storage.replace("store.json", b'{"format":2}')
    before = {file.path: file for file in store.storage.stat("")}
    asks: list[Callable[[], object]] = [
        store.snapshot,
        store.create,
        lambda: verify(store),
        lambda: delete_unused(store, grace_seconds=0),
        lambda: repair(store, manifests=manifests),
    ]
    for ask in asks:
        with pytest.raises(UnsupportedStore, match=r"format 2.*knows 1.*upgrade speechclip"):
            ask()
    for words in (["history"], ["tag", "--delete", "before-the-drop"], ["gc", "--now"], ["drop", "toy"]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--store", store.storage.root])
        assert end.value.code == 1
    assert {file.path: file for file in store.storage.stat("")} == before
