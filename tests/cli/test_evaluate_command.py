"""evaluate and keywords as commands, on a hybrid head with CLIP's text tower."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from support.keyword_corpus import KeywordCorpus, write_keyword_corpus

from speechclip.cli import main
from speechclip.evaluation.report import EvaluationReport
from speechclip.store import FeatureStore


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> KeywordCorpus:
    return write_keyword_corpus(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def there(corpus: KeywordCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    corpus.train(folder / "hybrid", "base-hybrid-flickr8k", has_parallel=True)
    corpus.manifest.write(str(folder / "m.parquet"))
    return {"run": str(folder / "hybrid"), "manifest": str(folder / "m.parquet"), "store": corpus.store.storage.root}


def options(there: dict[str, str], *names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", there[name])]


def test_the_report_is_shown_and_kept(
    there: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(there, "run", "manifest", "store")
    main(["evaluate", *asked, "--split", "train", "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert "report.json" in shown.err
    for words in ("this run, parallel", "this run, cascaded", "published: MILAN", "NOT COMPARABLE", "UNTRAINED", "kw4"):
        assert words in shown.out
    kept = msgspec.json.decode((tmp_path / "out" / "report.json").read_bytes(), type=EvaluationReport)
    assert (tmp_path / "out" / "report.txt").read_text() == kept.to_text()
    assert f"{kept.num_utterances} of {kept.num_utterances} utterances, " in shown.err
    main(["evaluate", *asked, "--split", "train", "--json"])
    assert msgspec.json.decode(capsys.readouterr().out, type=EvaluationReport) == kept


def test_a_tag_pins_what_is_evaluated(
    there: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore(str(shutil.copytree(there["store"], tmp_path / "store")))
    asked = [*options(there | {"store": store.storage.root}, "run", "manifest", "store"), "--split", "train", "--json"]
    main(["evaluate", *asked])
    before = capsys.readouterr().out
    store.tags.create("paper", store.snapshot().version)
    store.drop({info.fingerprint: None for info in store.snapshot().feature_sets() if info.spec.modality == "image"})
    main(["evaluate", *asked, "--version", "paper"])
    assert capsys.readouterr().out == before
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *asked])
    assert end.value.code == 1
    assert "no feature set" in capsys.readouterr().err


def test_in_a_ray_job_the_report_is_the_last_line_of_the_log(
    there: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    main(["evaluate", *options(there, "run", "manifest", "store"), "--split", "train"])
    shown = capsys.readouterr().out
    assert "this run, parallel" in shown
    assert msgspec.json.decode(shown.splitlines()[-1], type=EvaluationReport).split == "train"


def test_the_way_to_rank_tokens_is_asked_for(there: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(there, "run", "manifest", "store")
    main(["evaluate", *asked, "--split", "train", "--keyword-scoring", "pseudo-inverse", "--json"])
    assert json.loads(capsys.readouterr().out)["keywords"]["scoring"] == "pseudo-inverse"


def test_keywords_of_an_utterance_and_of_a_recording(
    corpus: KeywordCorpus, there: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    row = corpus.manifest.rows()[2]
    asked = options(there, "run", "store")
    main(["keywords", *asked, "--utterance", row["utterance"], "--json"])
    stored = json.loads(capsys.readouterr().out)
    assert [keyword["slot"] for keyword in stored] == [1, 2, 3, 4]
    assert all(len(keyword["near_chosen"]) == len(keyword["near_query"]) == 5 for keyword in stored)
    main(["keywords", *asked, "--audio", row["audio_uri"], "--json"])
    heard = json.loads(capsys.readouterr().out)
    assert [keyword["chosen"]["id"] for keyword in heard] == [keyword["chosen"]["id"] for keyword in stored]
    main(["keywords", *asked, "--utterance", row["utterance"]])
    shown = capsys.readouterr()
    assert stored[0]["chosen"]["token"] in shown.out
    assert "UNTRAINED" in shown.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "one of --utterance and --audio"),
        (["--utterance", "a", "--audio", "b"], 2, "one of --utterance and --audio"),
        (["--utterance", "nobody-said-this"], 1, "no manifest names it"),
    ],
)
def test_what_cannot_be_heard_is_one_sentence(
    there: dict[str, str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["keywords", *options(there, "run", "store"), *words])
    assert end.value.code == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.out == ""
