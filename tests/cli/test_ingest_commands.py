"""`speechclip ingest` as a person types it, and the layouts in docs/corpora.md."""

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.miniatures import Flickr8k, SpokenCOCO, put

from speechclip.cli import main
from speechclip.manifest import Manifest

DOCUMENT = Path(__file__).parents[2] / "docs" / "corpora.md"


def ingest(tmp_path: Path, *arguments: object) -> Manifest:
    out = tmp_path / "m.parquet"
    main(["ingest", *map(str, arguments), "--out", str(out)])
    return Manifest.read(str(out))


def layouts(corpus: str) -> list[list[str]]:
    blocks = re.findall(rf"```{corpus}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    return [block.splitlines() for block in blocks]


def only(lines: list[str], name: str) -> str | None:
    """The folder of the line that ends with `name`, None if there is none."""
    return next((line.removesuffix(name).rstrip("/") for line in lines if line.endswith(name)), None)


@pytest.mark.parametrize("lines", layouts("flickr8k"), ids=lambda lines: lines[0])
def test_a_documented_flickr8k_is_ingested(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "images": only(lines, "/<name>.jpg"),
        "texts": only(lines, "Flickr8k.token.txt") or "",
        "audio": only(lines, "/wavs/<name>_<number>.wav"),
        "splits": only(lines, "Flickr_8k.trainImages.txt") or "",
    }
    corpus = Flickr8k(tmp_path / "x", **{name: place for name, place in places.items() if place is not None})
    corpus.write_media()
    writers: dict[str, Callable[[], object]] = {
        "Flickr8k.token.txt": corpus.write_tokens,
        "captions.txt": corpus.write_captions,
        "Flickr_8k.testImages.txt": corpus.write_lists,
        "dataset_flickr8k.json": lambda: corpus.write_karpathy(corpus.root / "dataset_flickr8k.json"),
    }
    for name, write in writers.items():
        if only(lines, name) is not None:
            write()
    assert all((corpus.root / line).exists() for line in lines if "<" not in line)
    manifest = ingest(tmp_path, "flickr8k", corpus.root)
    assert manifest.source_problems("speech") == manifest.source_problems("image") == []
    assert "20 utterances (train 10, dev 5, test 5); assets: 20 speech, 4 image" in capsys.readouterr().err


@pytest.mark.parametrize("lines", layouts("spokencoco"), ids=lambda lines: lines[0])
def test_a_documented_spokencoco_is_ingested(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = SpokenCOCO(tmp_path / "x", inner=only(lines, "wavs/") or "", images=only(lines, "train2014/") or "")
    corpus.write_media()
    if only(lines, "SpokenCOCO_train.json") is not None:
        corpus.write()
    if only(lines, "ksplit_test.json") is not None:
        corpus.write_ksplits()
    if only(lines, "dataset_coco.json") is not None:
        corpus.write_karpathy(corpus.root / "dataset_coco.json")
    assert all((corpus.root / line).exists() for line in lines)
    manifest = ingest(tmp_path, "spokencoco", corpus.root)
    assert manifest.source_problems("speech") == manifest.source_problems("image") == []
    assert "12 utterances" in capsys.readouterr().err
    assert set(manifest.table["split"].to_pylist()) == {"train", "dev", "test"}


def test_options_of_the_published_corpora_arrive(tmp_path: Path) -> None:
    flickr = Flickr8k(tmp_path / "f")
    flickr.write_media()
    flickr.write_tokens()
    karpathy = flickr.write_karpathy(tmp_path / "k.json")
    assert "test" in ingest(tmp_path, "flickr8k", flickr.root, "--karpathy", karpathy).table["split"].to_pylist()
    coco = SpokenCOCO(tmp_path / "c", images="../elsewhere").write()
    karpathy = coco.write_karpathy(tmp_path / "kc.json")
    found = ingest(tmp_path, "spokencoco", coco.root, "--images", tmp_path / "elsewhere", "--karpathy", karpathy)
    assert "test" in found.table["split"].to_pylist()


def test_missing_files_of_a_copy_are_named_on_stderr(tmp_path: Path) -> None:
    """In a process of its own, because the command line configures logging once."""
    import subprocess
    import sys

    corpus = Flickr8k(tmp_path / "f").write()
    (corpus.audio / "wavs" / f"{corpus.names[0][:-4]}_1.wav").unlink()
    out = str(tmp_path / "m.parquet")
    command = [sys.executable, "-m", "speechclip", "ingest", "flickr8k", str(corpus.root), "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 pictures with captions are in no split and left out: 2258277193_586949ec62.jpg.1" in done.stderr
    assert f"row 2 ({corpus.names[0][:-4]}_1): source-missing: " in done.stderr
    assert done.stdout == ""


def test_columns_of_a_table_are_mapped(tmp_path: Path) -> None:
    rows = put(tmp_path / "rows.csv", "sentence,age\na dog,3\n")
    manifest = ingest(tmp_path, "table", rows, "--column", "text=sentence", "--split", "test")
    assert [(row["text"], row["split"]) for row in manifest.rows()] == [("a dog", "test")]


def test_options_of_webdataset_arrive(tmp_path: Path) -> None:
    for name in ("a-0", "b-0"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(put(tmp_path / "1.caption.txt", f"of {name}"), "1.caption.txt")
            tar.add(put(tmp_path / "1.other.txt", "other"), "1.other.txt")
    options = ("--column", "text=caption.txt", "--split", "train", "--split", "dev=b-*", "--tar-in-id")
    rows = ingest(tmp_path, "webdataset", tmp_path / "{a,b}-0.tar", *options).rows()
    found = [(row["utterance"], row["text"], row["split"]) for row in rows]
    assert found == [("a-0/1", "of a-0", "train"), ("b-0/1", "of b-0", "dev")]


def test_lhotses_manifests_are_ingested(tmp_path: Path) -> None:
    corpus = Flickr8k(tmp_path / "f").write()
    sources = [{"type": "file", "channels": [0], "source": f"wavs/{corpus.names[0][:-4]}_0.wav"}]
    length = {"sampling_rate": 16_000, "num_samples": 1_600, "duration": 0.1}
    recordings = put(tmp_path / "r.jsonl", json.dumps({"id": "r", "sources": sources} | length))
    line = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 0.1, "text": "a dog"}
    supervisions = put(tmp_path / "s.jsonl", json.dumps(line))
    manifest = ingest(tmp_path, "lhotse", recordings, supervisions, "--split", "dev", "--root", corpus.audio)
    assert [(row["num_samples"], row["split"]) for row in manifest.rows()] == [(1_600, "dev")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("flickr8k", "nowhere"),
            1,
            "nowhere: no such folder, or no file in it; give the folder of the unpacked corpus",
        ),
        (("spokencoco", "nowhere"), 1, "nowhere: no SpokenCOCO_train.json"),
        (("lhotse", "r.jsonl", "s.jsonl"), 1, "r.jsonl: no such file"),
        (("webdataset", "a-{0..1}.tar"), 1, "a-0.tar: no such tar; correct the path"),
        (("table", "r.csv", "--column", "audio"), 2, "'audio' is not OURS=THEIRS"),
        (("table", "r.csv", "--column", "audio=a", "--column", "audio=b"), 2, "audio is given twice"),
        (
            ("table", "r.csv", "--column", "sound=a"),
            1,
            "--column sound=…: there is no such column; to the left, give one of audio",
        ),
    ],
)
def test_every_mistake_ends_with_one_sentence(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["ingest", *arguments, "--out", "m.parquet"])
    shown = capsys.readouterr()
    assert end.value.code == code
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "m.parquet").exists()
