"""The commands as a person types them: one road from a corpus to an answer, and the ways off it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from speechclip.cli import LazyGroup, main
from speechclip.corpora.synthetic import make_synthetic


def speechclip(*arguments: object) -> int:
    """Run one command in this process; its exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("corpus"), num_concepts=6, num_voices=3)


@pytest.fixture
def featurized(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    """A manifest and a store with toy features of all three kinds."""
    manifest, store = tmp_path / "m.parquet", tmp_path / "store"
    assert main_ok("ingest", "table", corpus, "--out", manifest)
    assert main_ok("featurize", "--inline", "--manifest", manifest, "--store", store, *TOY)
    capsys.readouterr()
    return manifest, store


TOY = ("--speech", "toy", "--image", "toy", "--text", "toy")


def main_ok(*arguments: object) -> bool:
    main([str(argument) for argument in arguments])
    return True


def test_help_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from speechclip.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert all(name in done.stdout for name in LazyGroup.commands_by_module)


def test_plan_tells_what_remains_and_changes_nothing(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, store = tmp_path / "m.parquet", tmp_path / "store"
    main_ok("ingest", "table", corpus, "--out", manifest)
    main_ok("plan", "--manifest", manifest, "--store", store, *TOY, "--json")
    speech, image, text = json.loads(capsys.readouterr().out)
    assert [part["missing"] for part in (speech, image, text)] == [18, 6, 6]
    assert speech["rate_from"] == "a short calibration"
    assert not store.exists()
    main_ok("featurize", "--inline", "--manifest", manifest, "--store", store, *TOY, "--json")
    summary = json.loads(capsys.readouterr().out)
    assert list(summary) == [
        "run",
        "tasks_done",
        "tasks_skipped",
        "tasks_failed",
        "planned",
        "stored_before",
        "encoded",
        "rejected",
        "missing",
        "bytes",
        "seconds",
        "catalog_version",
    ]
    assert summary["planned"] == summary["encoded"] == 30
    assert (
        abs(speech["remaining_bytes"] + image["remaining_bytes"] + text["remaining_bytes"] - summary["bytes"])
        < 0.3 * summary["bytes"]
    )
    version = DeltaTable(str(store / "catalog")).version()
    main_ok("plan", "--manifest", manifest, "--store", store, *TOY)
    shown = capsys.readouterr()
    assert "untrained" in shown.err.lower()
    assert DeltaTable(str(store / "catalog")).version() == version


def test_too_many_rejections_end_with_3_and_keep_the_rest(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    (tmp_path / "empty.wav").write_bytes(b"")
    with corpus.open(newline="") as file:
        good = [str(corpus.parent / row["audio"]) for row in csv.DictReader(file)][:3]
    rows.write_text("audio,image,text,split\nempty.wav,,,train\n" + "".join(f"{path},,,train\n" for path in good))
    manifest, store = tmp_path / "m.parquet", tmp_path / "store"
    main_ok("ingest", "table", rows, "--out", manifest)
    run = ("featurize", "--inline", "--manifest", manifest, "--store", store, "--speech", "toy", "--json")
    capsys.readouterr()
    assert speechclip(*run) == 3
    shown = capsys.readouterr()
    assert "1 of 4 assets are rejected" in shown.err
    assert json.loads(shown.out)["encoded"] == 3
    main_ok(*run, "--max-rejected", "0.5")
    capsys.readouterr()
    main_ok("rejected", "--manifest", manifest, "--store", store, "--json")
    assert [row["reason"] for row in json.loads(capsys.readouterr().out)] == ["empty-audio"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("featurize", "--manifest", "m.parquet"), 1, "no such file"),
        (("featurize", "--bad-option"), 2, "No such option"),
        (("nonsense",), 2, "No such command"),
        (("query", "--run", "r", "--store", "s"), 2, "ask with exactly one of"),
        (("query", "--run", "r", "--store", "s", "--text", "x"), 1, "no finished run"),
        (("evaluate", "--run", "r", "--store", "s", "--manifest", "m"), 1, "no finished run"),
        (("ingest", "tuxpaint", "--out", "m.parquet"), 2, "either DIR or --fetch"),
        (("plan", "--manifest", "m.parquet", "--store", "gs://x"), 1, "m.parquet"),
    ],
)
def test_every_way_off_the_road_ends_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert speechclip(*arguments) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_store_in_a_jobs_throw_away_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert speechclip("featurize", "--manifest", "m.parquet", "--store", "store", "--speech", "toy") == 1
    assert "copy of the working directory" in capsys.readouterr().err


def test_export_joins_speech_image_and_text(tmp_path: Path, featurized: tuple[Path, Path]) -> None:
    import tarfile

    manifest, store = featurized
    main_ok(
        "export", "webdataset", "--manifest", manifest, "--store", store, "--out", tmp_path / "out", "--split", "train"
    )
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        names = tar.getnames()
    first = names[0].split(".")[0]
    assert {name.partition(".")[2] for name in names if name.startswith(first)} == {
        "speech.npy",
        "image.npy",
        "text.npy",
        "txt",
        "json",
    }
    assert speechclip("export", "webdataset", "--manifest", manifest, "--store", store, "--out", tmp_path / "out") == 1
