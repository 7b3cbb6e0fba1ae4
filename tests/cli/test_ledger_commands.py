"""The ledger as a person meets it on the command line: usage, budgets, retries, and what ingest says."""

import csv
import json
import logging
from pathlib import Path

import pytest

from speechclip.cli import main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.errors import REASONS


def speechclip(*arguments: object) -> int:
    """Run one command in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("corpus"), num_concepts=3, num_voices=3)


def test_beyond_the_budget_the_run_stops_keeps_what_was_done_and_goes_on_when_allowed(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine recordings, a task each, of which the fourth and sixth are bad: the second of them is one too many."""
    with corpus.open(newline="") as file:
        rows = [{"audio": str(corpus.parent / row["audio"]), "split": "train"} for row in csv.DictReader(file)]
    for number in (3, 5):
        (tmp_path / f"bad-{number}.wav").write_text(f"no recording {number}")
        rows[number]["audio"] = str(tmp_path / f"bad-{number}.wav")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "split"])
        writer.writeheader()
        writer.writerows(rows)
    places = ("--manifest", tmp_path / "m.parquet", "--store", tmp_path / "store")
    run = ("featurize", "--inline", *places, "--speech", "toy", "--json", "--set", "featurize.tasks.shard_items=1")
    assert speechclip("ingest", "table", tmp_path / "rows.csv", "--out", tmp_path / "m.parquet") == 0
    capsys.readouterr()

    assert speechclip(*run, "--max-rejected", "0.12") == 3
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert "2 of 9 assets are rejected, more than --max-rejected 0.12 allows" in shown.err
    assert (summary["encoded"], summary["rejected"], summary["missing"]) == (4, 2, 3)

    assert speechclip(*run, "--max-rejected", "0.12") == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["encoded"] <= 1, "still beyond: it stops as soon as it can tell"

    assert speechclip(*run, "--max-rejected", "0.25") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["stored_before"] + summary["encoded"], summary["rejected"], summary["missing"]) == (7, 2, 0)
    assert summary["encoded"] <= 3

    assert speechclip("rejected", *places, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["source"] for entry in listed] == [str(tmp_path / f"bad-{number}.wav") for number in (3, 5)]

    # Mended in place the bytes are others, which the manifest does not know: only a new ingest helps.
    assert speechclip(*run, "--max-rejected", "1", "--retry", "undecodable") == 0
    shown = capsys.readouterr()
    assert "2 to encode" in shown.err
    assert json.loads(shown.out)["rejected"] == 2


@pytest.mark.parametrize("share", ["nan", "-0.1", "1.5", "inf", "much"])
def test_a_budget_that_is_no_share_is_a_usage_error(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert speechclip("featurize", "--manifest", "m", "--store", "s", "--max-rejected", share) == 2
    assert "--max-rejected" in capsys.readouterr().err


def test_an_unknown_reason_is_a_usage_error_that_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert speechclip("featurize", "--manifest", "m", "--store", "s", "--retry", "sourcemissing") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'sourcemissing' is not one of" in said
    assert all(f"'{reason}'" in said for reason in REASONS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("featurize.max_rejected=2", "featurize.max_rejected must be a number <= 1.0"),
        ("featurize.max_rejected=.nan", "featurize.max_rejected must be a number >= 0.0"),
        ("featurize.tasks.shard_items=0", "featurize.tasks.shard_items must be a whole number >= 1"),
        ("featurize.tasks.shard_items=many", "featurize.tasks.shard_items must be a whole number, not a text"),
        ("featurize.num_cpus=[1]", "featurize.num_cpus must be a whole number or empty, not a list"),
        ("featurize.batches=3", "featurize.batches must be keys with values, not a whole number"),
        ("featurize.batches.speech_seconds=0", "featurize.batches.speech_seconds must be a number > 0.0"),
        ("featurize.task.shard_items=3", "there is no key featurize.task;"),
        ("featurise=3", "there is no key featurise;"),
        ("layers=[1, x]", "layers[1] must be a whole number, not a text"),
        ("codec=fp8", "codec: there is no choice 'fp8'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_in_plain_words(
    override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speechclip("plan", "--manifest", "m", "--store", "s", "--set", override) == 1
    assert capsys.readouterr().err.startswith(f"error: settings: {words}")


def test_all_untrained_encoders_are_named_on_one_line(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.parquet"
    assert speechclip("ingest", "table", corpus, "--out", manifest) == 0
    toy = ("--speech", "toy", "--image", "toy", "--text", "toy")
    assert speechclip("plan", "--manifest", manifest, "--store", tmp_path / "store", *toy) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "UNTRAINED" in line]
    assert [line.count(f"toy-untrained-{kind}-") for kind in ("speech", "image", "text")] == [1, 1, 1]
    assert " are UNTRAINED" in line


def test_a_table_without_splits_says_that_all_is_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b", "split": "dev"}\n{"text": "c"}\n')
    assert speechclip("ingest", "table", tmp_path / "rows.jsonl", "--out", tmp_path / "m.parquet") == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{tmp_path / 'rows.jsonl'}: 2 of 3 rows name no split; they go into train"
    assert "train 2, dev 1" in capsys.readouterr().err
    caplog.clear()
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "split": "train"}\n')
    assert speechclip("ingest", "table", tmp_path / "rows.jsonl", "--out", tmp_path / "m.parquet") == 0
    assert not caplog.records


def test_a_hostile_name_takes_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x", "audio": "two\nlines\x1b[31m.wav", "split": "train"}))
    assert speechclip("ingest", "table", tmp_path / "rows.jsonl", "--out", tmp_path / "m.parquet") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "two" in line]
    assert line.startswith("row 1 (x): source-missing: ")
    assert line.count("two\\nlines\\x1b[31m.wav: no such file; correct the path and ingest again") == 1
    assert speechclip("rejected", "--manifest", tmp_path / "m.parquet", "--store", tmp_path / "store") == 0
    shown = capsys.readouterr()
    assert "no feature store here yet" in shown.err
    assert "\x1b" not in shown.out
    assert "source-missing" in shown.out
