"""import-checkpoint as a person types it, and the run it makes under the other commands."""

import json
import os
from pathlib import Path

import pytest
import torch
from support import official_files

from speechclip.cli import main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.encoders.clip import load_text_weights

HUBERT, CLIP = "hubert:untrained-tiny", "clip:untrained-tiny"
IDS = torch.tensor([0, 320, 49_406, 49_407, 530, 2_368, 1_929, 525])


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def featurized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest and a store with features of the narrow stand-ins."""
    folder = tmp_path_factory.mktemp("import")
    corpus = make_synthetic(folder / "corpus", num_concepts=3, num_voices=1)
    manifest, store = folder / "m.parquet", folder / "store"
    run("ingest", "table", corpus, "--out", manifest)
    run("featurize", "--inline", "--manifest", manifest, "--store", store, "--speech", HUBERT, "--image", CLIP)
    return manifest, store


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascaded model of the stand-ins' sizes."""
    tokens = load_text_weights(CLIP).tensors["token_embedding.weight"]
    rest = official_files.around(official_files.TINY, tokens=tokens, ids=IDS)
    path = tmp_path_factory.mktemp("checkpoint") / "epoch=58.ckpt"
    return official_files.write_checkpoint(path, official_files.cascaded_state(official_files.TINY), rest)


def test_an_imported_head_evaluates_embeds_and_answers(
    featurized: tuple[Path, Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, store = featurized
    capsys.readouterr()
    bound = ("--speech", HUBERT, "--image", CLIP, "--recipe", "base-parallel-flickr8k")
    run("import-checkpoint", checkpoint, "--out", tmp_path / "run", *bound)
    told = capsys.readouterr().err
    assert "a cascaded head, " in told
    assert "5 states of width 96 (normalised: none) to 64, after epoch 58, step 6,902" in told
    assert "keywords: 8, chosen from 8 of CLIP's tokens" in told
    left_out = "the loss's masks (3 tensors), CLIP (3 tensors), HuBERT (4 tensors), CLIP again (3 tensors)"
    assert f"left out: {left_out}, the optimizer" in told
    assert f"{HUBERT} and {CLIP}, recipe base-parallel-flickr8k" in told
    assert "are UNTRAINED (random weights): this head was trained on other encoders" in told
    run("evaluate", "--run", tmp_path / "run", "--manifest", manifest, "--store", store, "--split", "train", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["head_step"] == 6_902
    assert report["num_utterances"] > 0
    run("embed", "--run", tmp_path / "run", "--manifest", manifest, "--store", store)
    capsys.readouterr()
    asked = ("--text", "a red circle", "--among", "speech", "-k", 2)
    run("query", "--run", tmp_path / "run", "--store", store, *asked, "--json")
    assert [answer["rank"] for answer in json.loads(capsys.readouterr().out)] == [1, 2]


def test_a_malicious_file_ends_with_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> object:
            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": {}, "hyper_parameters": {"config": Runs()}}, tmp_path / "x.ckpt")
    with pytest.raises(SystemExit) as end:
        run("import-checkpoint", tmp_path / "x.ckpt", "--out", tmp_path / "run")
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "its pickle would call posix.system" in told
    assert told.count("\n") == 1
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
