import csv
import json
import os
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.errors import InvalidInput, SourceMissing, Truncated
from speechclip.manifest import Manifest
from speechclip.media.content import fetch
from speechclip.media.decode import decode_audio


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six concepts by six voices, which is every format and rate that `make_synthetic` writes."""
    return make_synthetic(tmp_path_factory.mktemp("synthetic"), num_concepts=6, num_voices=6).parent


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def without(manifest: Manifest, *columns: str) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name not in columns} for row in manifest.rows()]


def test_a_table_becomes_a_manifest_whose_assets_can_be_fetched(corpus: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = read_table(str(corpus / "rows.csv"), on_progress=lambda done, total: calls.append((done, total)))
    assert len(manifest) == 36
    assert calls == [(done, 42) for done in range(1, 43)]
    for modality, num_assets in (("speech", 36), ("image", 6), ("text", 6)):
        assets = manifest.assets(modality)
        assert len(assets) == num_assets
        for asset in assets:
            data = fetch(asset)
            if modality == "speech":
                assert len(decode_audio(data, name="x")) / 16_000 == pytest.approx(asset.seconds, abs=1e-4)
    row = manifest.rows()[0]
    assert row["group"] == row["image_key"]
    assert os.path.isabs(row["audio_uri"])


def test_csv_jsonl_and_parquet_give_the_same_manifest(corpus: Path) -> None:
    rows = [{name: cell or None for name, cell in row.items()} for row in rows_of(corpus)]
    (corpus / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), corpus / "rows.parquet")
    digests = {read_table(str(corpus / f"rows.{kind}")).digest for kind in ("csv", "jsonl", "parquet")}
    assert len(digests) == 1


def test_a_corpus_with_bad_files_is_read_to_its_end(corpus: Path) -> None:
    whole_ogg = (corpus / "audio").glob("*.ogg")
    (corpus / "empty.wav").write_bytes(b"")
    (corpus / "text.wav").write_text("I am no sound.\n" * 99)
    (corpus / "cut.ogg").write_bytes(next(whole_ogg).read_bytes()[:-500])
    good = rows_of(corpus)[0]
    names = ["empty.wav", "text.wav", "cut.ogg", "gone.wav"]
    rows = [good, *(good | {"audio": name, "id": name} for name in names), good | {"id": "i", "image": "gone.png"}]
    manifest = read_table(write_csv(corpus / "bad.csv", [*rows, good | {"id": "d", "audio": "audio"}]))
    found = {row["utterance"]: row for row in manifest.rows()}
    for name in names[:3]:
        assert found[name]["speech_key"] is not None
        assert (found[name]["num_samples"], found[name]["audio_error"]) == (None, None)
    with pytest.raises(Truncated):
        decode_audio((corpus / "cut.ogg").read_bytes(), name="cut.ogg")
    assert found["gone.wav"]["speech_key"] is found["i"]["image_key"] is None
    assert found["gone.wav"]["audio_error"].startswith("source-missing: ")
    assert found["i"]["image_error"].startswith("source-missing: ")
    assert found["d"]["audio_error"].startswith("source-unreadable: ")
    (problem,) = manifest.source_problems("image")
    assert (problem.uri, problem.reason) == (str(corpus / "gone.png"), "source-missing")
    assert (problem.utterances, f"{problem.reason}: {problem.detail}") == (("i",), found["i"]["image_error"])
    assert found[good["id"]]["num_samples"] > 0


def test_a_table_on_s3_finds_its_files_beside_it(corpus: Path, s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    client = boto3.client("s3")
    rows = [row for row in rows_of(corpus) if row["id"].endswith("-2")]
    missing = rows[0] | {"id": "missing", "audio": "audio/none.wav"}
    for path in [corpus / row[name] for row in rows for name in ("audio", "image")]:
        client.upload_file(str(path), bucket, f"data/{path.relative_to(corpus)}")
    client.upload_file(write_csv(corpus / "remote.csv", [*rows, missing]), bucket, "data/rows.csv")
    manifest = read_table(f"s3://{bucket}/data/rows.csv")
    local = read_table(str(corpus / "remote.csv"))
    assert without(manifest, "audio_uri", "image_uri", "audio_error") == without(
        local, "audio_uri", "image_uri", "audio_error"
    )
    for asset in manifest.assets("speech") + manifest.assets("image"):
        assert (asset.uri or "").startswith(f"s3://{bucket}/data/")
        fetch(asset)
    assert manifest.rows()[-1]["audio_error"].startswith("source-missing: s3://")


def test_a_moved_and_reordered_corpus_keeps_keys_and_ids(corpus: Path, tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row.items() if name != "id"} for row in rows_of(corpus)]
    before = read_table(write_csv(corpus / "unnamed.csv", rows))
    moved = []
    for number, row in enumerate(reversed(rows)):
        (tmp_path / f"{number}.bin").write_bytes((corpus / row["audio"]).read_bytes())
        moved.append(row | {"audio": f"{number}.bin", "image": str(corpus / row["image"])})
    after = read_table(write_csv(tmp_path / "moved.csv", moved))
    assert without(after, "audio_uri")[::-1] == without(before, "audio_uri")


def test_equal_rows_get_different_ids(corpus: Path) -> None:
    row = {"text": "a cat", "split": "train"}
    names = read_table(write_csv(corpus / "same.csv", [row, row, row])).table["utterance"].to_pylist()
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


def test_seconds_become_the_nearest_samples_of_the_recording(corpus: Path) -> None:
    sound = next((corpus / "audio").glob("*.ogg"))
    bounds = {
        "a": (0.1, 0.3000001),
        "b": ("", 0.2),
        "c": (0.25, ""),
        "late": (0.25, 999),
        "whole": (0, ""),
        "out": (99, ""),
    }
    rows = [{"id": name, "audio": str(sound), "start": start, "end": end} for name, (start, end) in bounds.items()]
    found = {row["utterance"]: row for row in read_table(write_csv(corpus / "segments.csv", rows)).rows()}
    total = found["whole"]["num_samples"]
    cuts = {name: (row["start_sample"], row["end_sample"], row["num_samples"]) for name, row in found.items()}
    assert cuts == {
        "a": (4_410, 13_230, 8_820),
        "b": (0, 8_820, 8_820),
        "c": (11_025, total, total - 11_025),
        "late": (11_025, total, total - 11_025),
        "whole": (None, None, total),
        "out": (None, None, None),
    }
    assert found["c"]["speech_key"] == found["late"]["speech_key"] == f"{found['whole']['speech_key']}-11025-{total}"
    assert found["out"]["speech_key"] is None
    assert found["out"]["audio_error"].startswith("segment-outside: ")


def test_the_group_comes_from_the_table_else_the_image_else_the_text(tmp_path: Path, corpus: Path) -> None:
    image = str(next((corpus / "pictures").glob("*.png")))
    rows = [
        {"image": image, "text": "one", "group": "mine"},
        {"image": image, "text": "one", "group": ""},
        {"image": "", "text": "one", "group": ""},
        {"image": "gone.png", "text": "", "group": ""},
    ]
    found = read_table(write_csv(tmp_path / "groups.csv", rows)).rows()
    assert [row["group"] for row in found] == [
        "mine",
        found[1]["image_key"],
        found[2]["text_key"],
        found[3]["utterance"],
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("text,caption,wav\na,b,c\n", "unknown columns caption, wav; known are audio, image, text"),
        ("audio,image,text\n,,\n", "row 1: has neither audio nor image nor text"),
        ("text,split\na,train\nb,\n", "row 2: the cell `split` is empty"),
        ("text,start\na,1\n", "has start or end but no audio"),
        ("audio,start\na.wav,soon\n", "row 1: start is 'soon'"),
        ("audio,end\na.wav,-1\n", "row 1: end is '-1'"),
        ("audio,end\na.wav,nan\n", "row 1: end is 'nan'"),
        ("text,text\na,b\n", "'text' occurs twice"),
        ("text,split\na\n", "line 2 has 1 cells, the header 2"),
        ("id,text\n1,a\n1,b\n", "ids occur twice, first '1'"),
        ("text\n", "has no rows"),
        ("", "has no rows"),
        (b"text\n\xff\xfe\n", "UTF-8"),
    ],
)
def test_a_table_that_can_not_be_understood_is_refused(table: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(InvalidInput, match=message):
        read_table(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.xlsx", b"", r"\.csv, \.jsonl or \.parquet"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": ', "UTF-8 jsonl"),
        ("rows.jsonl", b'["a"]\n', "must be an object"),
        ("rows.jsonl", b'{"text": 5}\n', "text is 5"),
        ("rows.jsonl", b'{"text": "\\ud800"}\n', "not valid Unicode"),
        ("rows.parquet", b"PAR1 no", "parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput, match=message):
        read_table(str(tmp_path / name))


def test_a_table_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        read_table(str(tmp_path / "none.csv"))


def test_columns_may_have_other_names(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(corpus)
    other = [
        {
            "path": str(corpus / row["audio"]),
            "image": str(corpus / row["image"]),
            "sentence": row["text"],
            "text": "not this one",
            "client_id": row["speaker"],
            "up_votes": 7,
        }
        for row in rows
    ]
    with (tmp_path / "other.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in other)
    columns = {"audio": "path", "text": "sentence", "speaker": "client_id", "id": "path"}
    found = read_table(str(tmp_path / "other.jsonl"), columns=columns, split="test")
    expected = read_table(str(corpus / "rows.csv"))
    changed = ("utterance", "split", "language", "group")
    assert without(found, *changed) == without(expected, *changed)
    assert set(found.table["split"].to_pylist()) == {"test"}
    assert found.rows()[0]["utterance"] == str(corpus / rows[0]["audio"])
    assert "these columns are ignored: text, up_votes" in caplog.text
    assert "name no split" not in caplog.text


def test_a_default_split_is_used_only_for_rows_that_name_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put = tmp_path / "rows.jsonl"
    put.write_text('{"text": "a", "split": "dev"}\n{"text": "b"}\n')
    assert read_table(str(put), split="test").table["split"].to_pylist() == ["dev", "test"]
    assert caplog.text == ""
    assert read_table(str(put)).table["split"].to_pylist() == ["dev", "train"]
    assert "1 of 2 rows name no split; they go into train" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sound": "path"}, "--column sound=…: there is no such column; to the left, give one of audio"),
        ({"text": "caption"}, "has no column 'caption', only text, path; correct --column"),
    ],
)
def test_a_mapping_that_names_nothing_is_refused(columns: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,path\na,b.wav\n")
    with pytest.raises(InvalidInput, match=message):
        read_table(str(tmp_path / "rows.csv"), columns=columns)


def test_a_segment_of_very_many_seconds_is_outside(corpus: Path) -> None:
    sound = str(next((corpus / "audio").glob("*.ogg")))
    rows = [
        {"id": "a", "audio": sound, "start": 1e308, "end": ""},
        {"id": "b", "audio": sound, "start": 0, "end": 1e308},
    ]
    first, second = read_table(write_csv(corpus / "far.csv", rows)).rows()
    assert first["audio_error"].startswith("segment-outside: ")
    assert second["audio_error"] is None
