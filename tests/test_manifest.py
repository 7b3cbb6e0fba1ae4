import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechclip.errors import InvalidInput, SourceMissing
from speechclip.manifest import BATCH_ROWS, SCHEMA, Manifest
from speechclip.media.content import text_key


def row(name: str, **columns: Any) -> dict[str, Any]:
    return {"utterance": name, "split": "train", "group": "g"} | columns


def small_manifest() -> Manifest:
    sound = {"speech_key": "a" * 64, "audio_uri": "/a.wav", "num_samples": 24_000, "sample_rate": 8_000}
    segment = {"speech_key": f"{'a' * 64}-0-10", "audio_uri": "/a.wav", "start_sample": 0, "end_sample": 10}
    image = {"image_key": "b" * 64, "image_uri": "/b.png"}
    text = {"text_key": text_key("a cat"), "text": "a cat"}
    missing = {"audio_uri": "/gone.wav", "audio_error": "source-missing: /gone.wav: no such file"}
    return Manifest.from_rows(
        [
            row("1", **sound, **image, **text),
            row("2", **segment, **image, **text, split="dev"),
            row("3", **sound | {"audio_uri": "/copy.wav"}, speaker="s", language="ca"),
            row("4", **missing, **text, split="test"),
        ]
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = small_manifest()
    uri = str(tmp_path / "new" / "manifest.parquet")
    manifest.write(uri)
    again = Manifest.read(uri)
    assert again.rows() == manifest.rows()
    assert again.digest == manifest.digest
    assert len(again) == 4


def test_the_digest_is_that_of_the_rows_and_not_of_the_file(tmp_path: Path) -> None:
    manifest = small_manifest()
    pq.write_table(manifest.table, tmp_path / "other.parquet", compression="none", row_group_size=1)
    assert Manifest.read(str(tmp_path / "other.parquet")).digest == manifest.digest
    parts = [manifest.table.slice(0, 0), manifest.table.slice(0, 1), manifest.table.slice(1)]
    assert Manifest(pa.concat_tables(parts)).digest == manifest.digest
    # Recorded: with another value, no artifact would find the manifest that it names.
    assert manifest.digest == "df0bc89525ed1f768d015e55d9c377aad2076d6e3a4469cdcc23bd3794a2e773"


def test_any_changed_cell_changes_the_digest() -> None:
    rows = small_manifest().rows()
    digests = {Manifest.from_rows(rows).digest, Manifest.from_rows(rows[::-1]).digest}
    for name in SCHEMA.names:
        value = 7 if pa.types.is_integer(SCHEMA.field(name).type) else "changed"
        digests.add(Manifest.from_rows([rows[0] | {name: value}, *rows[1:]]).digest)
    assert len(digests) == 2 + len(SCHEMA.names)


def test_an_utterance_that_occurs_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'twice'"):
        Manifest.from_rows([row("twice"), row("once"), row("twice")])


def test_an_asset_of_many_rows_is_listed_once_in_order() -> None:
    manifest = small_manifest()
    speech = manifest.assets("speech")
    assert [asset.key for asset in speech] == ["a" * 64, f"{'a' * 64}-0-10"]
    assert (speech[0].seconds, speech[0].uri, speech[1].end_sample) == (3.0, "/a.wav", 10)
    assert [asset.key for asset in manifest.assets("image")] == ["b" * 64]
    assert [(asset.key, asset.text) for asset in manifest.assets("text")] == [(text_key("a cat"), "a cat")]


def test_sources_that_could_not_be_read_are_listed_with_their_reason() -> None:
    (problem,) = small_manifest().source_problems("speech")
    assert (problem.uri, problem.reason, problem.detail) == ("/gone.wav", "source-missing", "/gone.wav: no such file")
    assert problem.utterances == ("4",)
    assert small_manifest().source_problems("image") == small_manifest().source_problems("text") == []


def test_select_keeps_the_rows_of_known_splits() -> None:
    assert [r["utterance"] for r in small_manifest().select(["dev", "train"]).rows()] == ["1", "2", "3"]
    with pytest.raises(InvalidInput, match="no split 'val'; choose from dev, test, train"):
        small_manifest().select(["train", "val"])


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"no parquet at all")
    pq.write_table(pa.table({"utterance": ["1"]}), tmp_path / "other.parquet")
    for name in ("text.parquet", "other.parquet"):
        with pytest.raises(InvalidInput, match="speechclip ingest"):
            Manifest.read(str(tmp_path / name))
    with pytest.raises(SourceMissing):
        Manifest.read(str(tmp_path / "absent.parquet"))


def test_an_asset_keeps_every_address_of_its_bytes() -> None:
    first, segment = small_manifest().assets("speech")
    assert (first.uri, first.other_uris) == ("/a.wav", ("/copy.wav",))
    assert segment.other_uris == ()
    assert [asset.other_uris for asset in small_manifest().assets("image")] == [()]


def test_the_assets_of_a_large_manifest_take_little_more_memory_than_they_are() -> None:
    rows = (
        row(f"{number}", speech_key=f"{number:064x}", audio_uri=f"/{number}.wav", num_samples=1, sample_rate=1)
        for number in range(3 * BATCH_ROWS)
    )
    manifest = Manifest.from_rows(rows)
    tracemalloc.start()
    try:
        assets = manifest.assets("speech")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [asset.uri for asset in assets] == [f"/{number}.wav" for number in range(3 * BATCH_ROWS)]
    assert peak < 1.5 * kept + 20_000_000


def test_each_asset_names_its_utterances() -> None:
    manifest = small_manifest()
    assert manifest.utterances("speech") == {"a" * 64: ("1", "3"), f"{'a' * 64}-0-10": ("2",)}
    assert manifest.utterances("text") == {text_key("a cat"): ("1", "2", "4")}


def test_two_bad_segments_of_one_file_are_two_problems() -> None:
    rows = [
        row(str(number), audio_uri="/a.wav", audio_error=f"segment-outside: [{bound}, 9) s holds nothing")
        for number, bound in enumerate((7, 8, 7))
    ]
    problems = Manifest.from_rows(rows).source_problems("speech")
    assert [(problem.detail[:2], problem.utterances) for problem in problems] == [("[7", ("0", "2")), ("[8", ("1",))]


def test_a_write_that_fails_leaves_the_manifest_that_was_there(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    small_manifest().write(uri)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Manifest.from_rows([row(str(number)) for number in range(9_999)]).write(uri)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Manifest.read(uri).digest == small_manifest().digest
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
