import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import webdataset
from support.miniatures import picture, recording

from speechclip.cli import main
from speechclip.corpora.webdataset import read_webdataset
from speechclip.errors import InvalidInput, SourceChanged
from speechclip.manifest import Manifest
from speechclip.media.content import content_key, fetch, text_key
from speechclip.store import FeatureStore

Sample = dict[str, Any]


def sample(number: int, **members: Any) -> Sample:
    """As a user of the library writes it: a recording, a picture, a text and a json."""
    fields = {"split": "train" if number % 2 else "dev", "speaker": f"s{number}", "language": "en", "width": 8}
    return {
        "__key__": f"clips/{number:03d}",
        "wav": recording(number),
        "jpg": picture(number),
        "txt": f"caption {number}",
        "json": fields,
    } | members


def write(path: Path, *samples: Sample) -> Path:
    with webdataset.TarWriter(str(path), encoder=_encode) as tar:
        for one in samples:
            tar.write(one)
    return path


def _encode(one: Sample) -> Sample:
    """The library's own encoder would decode and encode the pictures again."""
    return {name: value if name == "__key__" else _bytes(value) for name, value in one.items()}


def _bytes(value: Any) -> bytes:
    text = json.dumps(value) if isinstance(value, dict) else value
    return text.encode() if isinstance(text, str) else text


def write_members(path: Path, *members: tuple[str, bytes], end: bool = True) -> Path:
    """A tar of exactly these names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        size = buffer.tell()
    path.write_bytes(buffer.getvalue() if end else buffer.getvalue()[:size])
    return path


def read(*tars: Path, **options: Any) -> Manifest:
    return read_webdataset([str(tar) for tar in tars], **options)


@pytest.fixture
def shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Six samples in tars of two, by the library's own writer of shards."""
    with webdataset.ShardWriter(str(tmp_path / "clips-%03d.tar"), maxcount=2, encoder=_encode) as writer:
        for number in range(6):
            writer.write(sample(number))
    capsys.readouterr()
    return sorted(tmp_path.glob("clips-*.tar"))


def test_tars_become_a_manifest_whose_assets_are_read_in_place(shards: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    manifest = read(*shards, on_progress=lambda done, total: calls.append((done, total)))
    rows = manifest.rows()
    assert [row["utterance"] for row in rows] == [f"clips/{number:03d}" for number in range(6)]
    assert [row["split"] for row in rows] == ["dev", "train"] * 3
    assert (rows[3]["text"], rows[3]["speaker"], rows[3]["language"]) == ("caption 3", "s3", "en")
    assert (rows[3]["num_samples"], rows[3]["sample_rate"], rows[3]["group"]) == (1_600, 16_000, rows[3]["image_key"])
    assert calls[-1] == (12, 12)
    for number, (speech, image) in enumerate(zip(manifest.assets("speech"), manifest.assets("image"), strict=True)):
        assert (speech.key, image.key) == (content_key(recording(number)), content_key(picture(number)))
        assert (fetch(speech), fetch(image)) == (recording(number), picture(number))
        assert (speech.uri or "").startswith(f"{shards[number // 2]}#offset=")


def test_braces_name_many_tars_as_in_the_library(shards: list[Path]) -> None:
    braces = str(shards[0].parent / "clips-{000..002}.tar")
    assert read_webdataset([braces]).digest == read(*shards).digest


def test_a_tar_on_s3_is_read_by_ranges(shards: list[Path], s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    boto3.client("s3").upload_file(str(shards[1]), bucket, "data/clips-001.tar")
    manifest = read_webdataset([f"s3://{bucket}/data/clips-{{001..001}}.tar"])
    local = read(shards[1])
    for name in ("utterance", "speech_key", "image_key", "text_key", "num_samples"):
        assert manifest.table[name] == local.table[name]
    for asset in manifest.assets("speech") + manifest.assets("image"):
        assert (asset.uri or "").startswith(f"s3://{bucket}/data/clips-001.tar#offset=")
        fetch(asset)


# The stock reader leaves its file for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_features_come_from_the_tars_and_go_out_as_tars(shards: list[Path], tmp_path: Path) -> None:
    """The whole way: ingest, featurize, export, and the stock reader."""
    manifest, store, out = (str(tmp_path / name) for name in ("m.parquet", "store", "out"))
    main(["ingest", "webdataset", str(tmp_path / "clips-{000..002}.tar"), "--out", manifest])
    toys = ["--speech", "toy", "--image", "toy", "--text", "toy"]
    main(["featurize", "--inline", "--manifest", manifest, "--store", store, *toys])
    main(["export", "webdataset", "--manifest", manifest, "--store", store, "--out", out])
    snapshot = FeatureStore(store).snapshot()
    exported = list(webdataset.WebDataset(f"{out}/shard-000000.tar", shardshuffle=False).decode())
    assert len(exported) == 6
    for number, one in enumerate(exported):
        assert one["json"]["utterance"] == f"clips/{number:03d}"
        assert one["txt"] == f"caption {number}"
        (speech,) = [info.fingerprint for info in snapshot.feature_sets() if info.spec.modality == "speech"]
        assert (one["speech.npy"] == snapshot.feature_set(speech)[content_key(recording(number))]).all()


def test_a_tar_that_changed_since_ingest_is_a_source_problem(shards: list[Path]) -> None:
    first, *_ = read(shards[0]).assets("speech")
    shards[0].write_bytes(shards[0].read_bytes()[:700])
    with pytest.raises(SourceChanged, match=r"clips-000.tar#offset=\d+&size=3244: only \d+ of these bytes are there"):
        fetch(first)


@pytest.mark.parametrize("num_bytes", [100, 512, 700, 3_000, 5_000, -10_240, -9_000])
def test_a_cut_tar_is_refused_whole(shards: list[Path], num_bytes: int) -> None:
    shards[2].write_bytes(shards[2].read_bytes()[:num_bytes])
    with pytest.raises(InvalidInput, match=r"clips-002.tar: .*(whole tar|end mark|damaged).*; download"):
        read(*shards)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    members = [(f"{number}.wav", recording(number)) for number in range(3)]
    assert len(read(write_members(tmp_path / "whole.tar", *members))) == 3
    cut = write_members(tmp_path / "cut.tar", *members, end=False)
    with pytest.raises(InvalidInput, match=f"ends at byte {cut.stat().st_size} without an end mark"):
        read(cut)


def test_a_damaged_header_is_not_taken_for_the_end_of_the_tar(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", ("0.txt", b"first"), ("1.txt", b"second"))
    data = bytearray(path.read_bytes())
    data[1024 + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="the header at byte 1024 is damaged"):
        read(path)


def test_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    one = write_members(tmp_path / "a.tar", ("0.txt", b"first"))
    one.write_bytes(one.read_bytes() * 2)
    with pytest.raises(InvalidInput, match="data follows the end mark at byte 1024"):
        read(one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"\x1f\x8b\x08 more"), "is compressed"),
        (lambda path: path.write_bytes(b"no tar at all" * 99), "is not a whole tar"),
        (lambda path: path.write_bytes(b""), "is not a whole tar"),
        (lambda path: None, "no such tar"),
        (lambda path: path.mkdir(), "no such tar"),
        (lambda path: write_members(path, ("a.json", b"[1]")), "sample a: its json is not an object"),
        (lambda path: write_members(path, ("a.json", b"{")), "sample a: its json can't be read"),
        (lambda path: write_members(path, ("a.txt", b"\xff")), "sample a: its txt is not UTF-8"),
        (lambda path: write_members(path, ("a.txt", b"1"), ("a.TXT", b"2")), "a.TXT: duplicate file name"),
        (lambda path: write_members(path, ("a.txt", b"1"), ("b.txt", b"2"), ("a.png", b"3")), "id 'a' occurs twice"),
        (lambda path: write_members(path, ("a.npy", b"1")), "no sample has a recording, a picture or a text, only npy"),
        (lambda path: write_members(path, ("a.l.wav", b"1"), ("a.r.wav", b"2")), "several members of the kind audio"),
        (lambda path: write_members(path, ("a.txt", b" " * (1 << 24) + b"x")), "a.txt has 16777217 bytes"),
    ],
)  # fmt: skip
def test_a_broken_or_ambiguous_tar_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "a.tar")
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path / "a.tar")


def test_no_command_and_no_url_is_opened(tmp_path: Path) -> None:
    for address in (f"pipe:touch {tmp_path}/ran", "https://example.org/a.tar", "http://{a,b}/c.tar"):
        with pytest.raises(InvalidInput, match=r"no such tar|only local paths and s3:// addresses"):
            read_webdataset([address])
    assert not list(tmp_path.iterdir())


def test_keys_have_folders_and_end_at_the_first_dot(tmp_path: Path) -> None:
    members = [
        ("en/v1.0/a b.wav", recording(1)),
        ("en/v1.0/a b.caption.txt", b"a dog\n"),
        ("de/x.flac", recording(2, kind="FLAC")),
        ("ünï.webp", picture(3)),
    ]
    rows = read(write_members(tmp_path / "a.tar", *members)).rows()
    assert [row["utterance"] for row in rows] == ["en/v1.0/a b", "de/x", "ünï"]
    assert (rows[0]["text"], rows[0]["text_key"]) == ("a dog", text_key("a dog"))
    assert [row["speech_key"] is None for row in rows] == [False, False, True]


def test_what_is_in_no_row_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("README", b"x"), ("0.txt", b"a"), ("0.npy", b"x"), ("0.json", b'{"width": 3}'), ("1.npy", b"x")]
    assert len(read(write_members(tmp_path / "a.tar", *members))) == 1
    assert "members with these endings are ignored: npy" in caplog.text
    assert "these fields of the json are ignored: width" in caplog.text
    assert "1 samples have no recording, picture or text and are left out: 1" in caplog.text
    assert "1 of 1 rows name no split; they go into train" in caplog.text


def test_the_librarys_own_meta_data_is_skipped(tmp_path: Path) -> None:
    members = [("__index__", b"x"), ("__meta__/x.txt", b"x"), ("0.txt", b"a")]
    assert [row["text"] for row in read(write_members(tmp_path / "a.tar", *members)).rows()] == ["a"]


def test_a_broken_recording_keeps_its_row(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", ("0.wav", b"no sound"), ("1.wav", recording(1)))
    rows = read(path).rows()
    assert (rows[0]["speech_key"], rows[0]["num_samples"]) == (content_key(b"no sound"), None)
    assert rows[1]["num_samples"] == 1_600


def test_columns_are_taken_from_endings_and_json_fields(tmp_path: Path) -> None:
    fields = {"sentence": "from json", "text": "another", "sex": "f", "id": "c7", "from": 0.05, "to": 0.1}
    path = write(tmp_path / "a.tar", sample(1, txt="ignored", cls=b"7\n", json=fields, **{"b.wav": recording(2)}))
    columns = {"text": "sentence", "group": "cls", "audio": "b.wav", "id": "id", "start": "from", "end": "to"}
    (row,) = read(path, columns=columns).rows()
    assert (row["utterance"], row["text"], row["group"]) == ("c7", "from json", "7")
    assert (row["start_sample"], row["end_sample"]) == (800, 1_600)
    assert row["speech_key"] == f"{content_key(recording(2))}-800-1600"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": "mp3"}, "--column audio=mp3: no sample has that, only jpg, json, txt, wav"),
        ({"audio": "speaker"}, "--column audio=speaker: no sample has that"),
        ({"sound": "wav"}, "--column sound=…: there is no such column"),
        ({"text": "jpg"}, "jpg is a recording or a picture, not text"),
    ],
)
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path / "a.tar", sample(1)), columns=columns)


def test_splits_come_from_the_json_then_from_the_tars_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path / f"{name}.tar", sample(n, json={})) for n, name in enumerate(("a-0", "val-0", "val-1"))]
    paths.append(write(tmp_path / "val-2.tar", sample(3, json={"split": "own"})))
    manifest = read(*paths, splits=["dev=val-*", "train"])
    assert manifest.table["split"].to_pylist() == ["train", "dev", "dev", "own"]
    assert "name no split" not in caplog.text


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["dev="], "--split dev=: is not NAME or NAME=PATTERN"),
        (["dev=val-*"], "--split dev=val-.: no tar has a name like that"),
        (["dev=a*", "test=*.tar"], "a.tar: is in split dev and in test"),
    ],
)
def test_a_split_that_fits_no_tar_is_refused(tmp_path: Path, splits: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path / "a.tar", sample(1)), splits=splits)


def test_tars_that_use_the_same_keys_need_their_names_in_the_ids(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.tar", sample(1, wav=recording(n))) for n, name in enumerate("ab")]
    with pytest.raises(InvalidInput, match=r"b.tar: the id 'clips/001' occurs twice, first in .*a.tar; .*--tar-in-id"):
        read(*paths)
    assert read(*paths, tar_in_id=True).table["utterance"].to_pylist() == ["a/clips/001", "b/clips/001"]
    with pytest.raises(InvalidInput, match=r"a.tar: is given twice"):
        read(paths[0], paths[0])
