import io
import tarfile
from pathlib import Path

import pytest
from support.miniatures import put

from speechclip.cli import main
from speechclip.errors import InvalidInput
from speechclip.export import export_webdataset
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.storage import Storage
from speechclip.store import FeatureStore, Snapshot

NAMES = [f"u.{number}/ü" for number in range(5)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Manifest, dict[Modality, str]]:
    """Five texts with toy vectors."""
    folder = tmp_path_factory.mktemp("export")
    lines = ["id,text,split", *(f"{name},text {number},train" for number, name in enumerate(NAMES))]
    rows, manifest, store = put(folder / "rows.csv", "\n".join(lines)), str(folder / "m.parquet"), str(folder / "store")
    main(["ingest", "table", str(rows), "--out", manifest])
    main(["featurize", "--inline", "--manifest", manifest, "--store", store, "--text", "toy"])
    snapshot = FeatureStore(store).snapshot()
    return snapshot, Manifest.read(manifest), {"text": snapshot.feature_sets()[0].fingerprint}


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def test_equal_exports_are_equal_bytes_without_time_or_owner(
    stored: tuple[Snapshot, Manifest, dict[Modality, str]], tmp_path: Path, s3_uri: str
) -> None:
    found = {}
    for place in (str(tmp_path / "a"), f"{s3_uri}/tars"):
        assert export_webdataset(*stored, place).shards == ("shard-000000.tar",)
        found[place] = Storage(place).read("shard-000000.tar")
    first, second = found.values()
    assert first == second
    owners = {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in members(first)}
    assert owners == {(0, 0, 0, "", "")}


def test_a_members_name_is_the_row_number_and_the_safe_part_of_its_id(
    stored: tuple[Snapshot, Manifest, dict[Modality, str]], tmp_path: Path
) -> None:
    export_webdataset(*stored, str(tmp_path))
    names = [info.name for info in members((tmp_path / "shard-000000.tar").read_bytes())]
    assert names[:3] == ["000000000-u_0_.json", "000000000-u_0_.text.npy", "000000000-u_0_.txt"]
    assert len(names) == 15


def test_shards_are_cut_by_size_and_none_is_overwritten(
    stored: tuple[Snapshot, Manifest, dict[Modality, str]], tmp_path: Path
) -> None:
    exported = export_webdataset(*stored, str(tmp_path), shard_bytes=1)
    assert (exported.num_utterances, exported.num_left_out, len(exported.shards)) == (5, 0, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidInput, match=r"shard-000000.tar: exists already; export into an empty folder"):
        export_webdataset(*stored, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
