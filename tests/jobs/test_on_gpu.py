"""On a GPU: encoders share it, a job with Ray stores the same as one without, and Ray Train trains on it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paired_corpus import write_corpus
from support.stores import SIZES, encode_all, synthetic

from speechclip.cli import main
from speechclip.featurization.tasks import EncoderRequest
from speechclip.jobs.train import TrainRequest, train
from speechclip.records import MODALITIES
from speechclip.storage import Storage
from speechclip.store import FeatureStore
from speechclip.training.metrics import read_metrics
from speechclip.training.recipe import Recipe
from speechclip.upkeep.recompute import recompute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
    # Ray's own code uses what it deprecates.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

REQUESTS = [
    EncoderRequest(
        encoder_name="hubert:untrained-tiny" if modality == "speech" else "clip:untrained-tiny", modality=modality
    )
    for modality in MODALITIES
]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store that was filled on the GPU without Ray."""
    store = FeatureStore(str(tmp_path_factory.mktemp("inline") / "store"))
    encode_all(store, synthetic(), REQUESTS, SIZES)
    return store


def test_features_encoded_again_on_the_gpu_or_a_cpu_equal_the_stored_ones(inline: FeatureStore) -> None:
    for device in ("cuda", "cpu"):
        found = recompute(inline, inline.snapshot(), 100, 0, device=device)
        assert sorted(part.assets for part in found) == [6, 6, 18]
        assert all(part.is_equal for part in found), found


@pytest.mark.ray
def test_encoders_that_share_a_gpu_on_ray_store_the_same_as_one_without_ray(
    inline: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic().write(str(tmp_path / "m.parquet"))
    sources = [f"--{request.modality}={request.encoder_name}" for request in REQUESTS]
    sizes = [f"--set=featurize.tasks.{name}={getattr(SIZES, name)}" for name in ("shard_items", "chunk_rows")]
    store = str(tmp_path / "store")
    main(["featurize", "--manifest", str(tmp_path / "m.parquet"), "--store", store, *sources, *sizes, "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["encoded"] == 30
    here, there = FeatureStore(store).snapshot(), inline.snapshot()
    for info in there.feature_sets():
        ours, theirs = here.feature_set(info.fingerprint), there.feature_set(info.fingerprint)
        for key in there.stored_keys(info.fingerprint):
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.ray
def test_ray_train_trains_on_the_gpu(tmp_path: Path) -> None:
    corpus = write_corpus(str(tmp_path / "store"))
    corpus.manifest.write(str(tmp_path / "m.parquet"))
    recipe = Recipe(name="small", batch_size=9, max_steps=20, warmup_steps=2, num_heads=4, image_projection=True)
    out, alone = str(tmp_path / "run"), str(tmp_path / "alone")
    train(TrainRequest(manifest=str(tmp_path / "m.parquet"), store=corpus.store_uri, out=out, recipe=recipe))
    corpus.trainer(recipe, alone, device="cuda").fit()
    there, here = ([line["loss"] for line in read_metrics(Storage(name))] for name in (out, alone))
    assert there[:20] == pytest.approx(here[:20], rel=1e-4)
