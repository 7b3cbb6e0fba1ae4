"""On a GPU heads learn as on a CPU, in every precision, and an interrupted run continues to the same bits."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.paired_corpus import Corpus, write_corpus

from speechclip.storage import Storage
from speechclip.training.checkpoint import RunFolder
from speechclip.training.metrics import read_metrics
from speechclip.training.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

RECIPE = Recipe(
    name="small", batch_size=18, max_steps=60, warmup_steps=5, learning_rate=1e-3, num_heads=4, feed_forward_factor=2,
    normalize_states="s3prl", image_projection=True, embedding_width=8, is_temperature_learnable=True,
    validate_every=20, checkpoint_every=20, seed=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("training") / "store"), with_clip=True)


def losses(run_uri: Any) -> list[float]:
    return [line["loss"] for line in read_metrics(Storage(str(run_uri)))]


@pytest.mark.parametrize("head", ["parallel", "hybrid-plus"])
def test_a_head_trains_as_on_a_cpu_and_continues_to_the_same_bits(corpus: Corpus, tmp_path: Path, head: Any) -> None:
    recipe = msgspec.structs.replace(RECIPE, head=head, image_projection=False, embedding_width=None)
    for name, device in (("cpu", "cpu"), ("straight", "cuda"), ("cut", "cuda")):
        trainer = corpus.trainer(recipe, str(tmp_path / name), device=device)
        if name == "cut":
            stop_after(trainer, 30)
            with pytest.raises(InterruptedError):
                trainer.fit()
            assert RunFolder(str(tmp_path / name)).steps()[-1] == 20
            trainer = corpus.trainer(recipe, str(tmp_path / name), device=device)
        trainer.fit()
    on_cpu, straight, cut = (losses(tmp_path / name) for name in ("cpu", "straight", "cut"))
    assert cut == straight
    # In later steps the differences by rounding have grown.
    assert straight[:10] == pytest.approx(on_cpu[:10], rel=1e-4)
    assert np.mean(straight[-10:]) < 0.8 * np.mean(straight[:10])


def stop_after(trainer: Any, step: int) -> None:
    take = trainer.take_step

    def until(batches: Any) -> Any:
        if trainer.step == step:
            raise InterruptedError
        return take(batches)

    trainer.take_step = until


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_head_trains_in_half_precision(corpus: Corpus, tmp_path: Path, precision: Any) -> None:
    for name, kind in (("half", precision), ("full", "fp32")):
        recipe = msgspec.structs.replace(RECIPE, precision=kind)
        corpus.trainer(recipe, str(tmp_path / name), device="cuda").fit()
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert half != full
    # In fp16 the first steps overflow and are skipped, until the scale is low enough.
    assert half[0] == pytest.approx(full[0], rel=0.02)
    assert np.mean(half[-10:]) < 0.8 * np.mean(half[:10])
