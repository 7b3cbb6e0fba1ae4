"""The functions of `import speechclip`: the whole road in a few lines, with the results of the command line."""

from pathlib import Path

import pytest
import webdataset
from click.testing import CliRunner
from support.feature_sets import content

import speechclip
from speechclip.cli import cli
from speechclip.errors import InvalidInput, WorkLeft

TOYS = {"speech": "toy", "image": "toy", "text": "toy"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    speechclip.ingest_synthetic(str(folder / "corpus"), str(folder / "m.parquet"), concepts=6, voices=3)
    return str(folder / "m.parquet")


@pytest.fixture(scope="module")
def store(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("store") / "store")
    speechclip.featurize(manifest, uri, **TOYS, inline=True)  # type: ignore[arg-type]
    return uri


def test_ingest_writes_what_it_returns(manifest: str, tmp_path: Path) -> None:
    again = speechclip.ingest_synthetic(str(tmp_path / "corpus"), concepts=6, voices=3)
    assert len(again) == len(speechclip.Manifest.read(manifest)) == 18


def test_featurize_is_the_command(manifest: str, store: str, tmp_path: Path) -> None:
    words = ["featurize", "--inline", "--manifest", manifest, "--store", str(tmp_path / "s"), "--json"]
    done = CliRunner().invoke(cli, [*words, *(word for name in TOYS for word in (f"--{name}", "toy"))])
    assert done.exit_code == 0, done.output
    ours, theirs = (speechclip.FeatureStore(uri).snapshot() for uri in (store, str(tmp_path / "s")))
    assert content(ours) == content(theirs)


def test_a_second_call_encodes_nothing(manifest: str, store: str) -> None:
    summary = speechclip.featurize(manifest, store, **TOYS, inline=True)  # type: ignore[arg-type]
    assert (summary.encoded, summary.missing, summary.stored_before) == (0, 0, summary.planned)
    assert all(line.missing == 0 for line in speechclip.plan(manifest, store, **TOYS))  # type: ignore[arg-type]


def test_progress_is_told_and_the_last_look_says_so(manifest: str, tmp_path: Path) -> None:
    looks: list[tuple[int, bool]] = []
    speechclip.featurize(
        manifest,
        str(tmp_path / "s"),
        speech="toy",
        inline=True,
        on_progress=lambda progress, is_last: looks.append((progress.tasks_done, is_last)),
    )
    assert looks[-1] == (1, True)


def test_a_corpus_with_lost_sources_raises_and_lists_them(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("audio,text,split\nnowhere.wav,a dog,train\n")
    manifest = speechclip.ingest_table(str(tmp_path / "rows.csv"))
    with pytest.raises(WorkLeft, match="1 of 1"):
        speechclip.featurize(manifest, str(tmp_path / "s"), speech="toy", inline=True)
    assert [one.reason for one in speechclip.rejected(manifest, str(tmp_path / "s"))] == ["source-missing"]


def test_no_encoder_is_one_sentence(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no encoder"):
        speechclip.featurize(manifest, str(tmp_path / "s"), inline=True)


def test_export_takes_every_modality_that_is_stored(manifest: str, store: str, tmp_path: Path) -> None:
    done = speechclip.export_webdataset(manifest, store, str(tmp_path / "tars"))
    assert done.num_utterances == 18
    assert all((tmp_path / "tars" / name).is_file() for name in done.shards)


# docs/python.md takes the same way in CI.
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_ends")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_a_head_is_trained_measured_and_searched_by(manifest: str, store: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    sizes = {"max_steps": 6, "batch_size": 6, "validate_every": 3, "checkpoint_every": 3, "warmup_steps": 1}
    info = speechclip.train(manifest, store, run, recipe="demo-parallel", overrides=sizes, num_cpus=2)
    assert info.num_steps == 6
    report = speechclip.evaluate(run, manifest, store, split="test")
    assert report.num_utterances > 0
    assert speechclip.embed(run, manifest, store).encoded == 18
    found = speechclip.search(run, store, text="a red circle", k=3)
    assert [answer.rank for answer in found] == [1, 2, 3]
    with pytest.raises(InvalidInput, match="one question"):
        speechclip.search(run, store)


def test_tars_are_read_as_they_are(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "one", "txt": "a dog", "json": {"split": "train"}})
    manifest = speechclip.ingest_webdataset([str(tmp_path / "a.tar")], str(tmp_path / "m.parquet"))
    assert [row["text"] for row in manifest.rows()] == ["a dog"]
    assert len(speechclip.Manifest.read(str(tmp_path / "m.parquet"))) == 1
