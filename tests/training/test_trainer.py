import multiprocessing
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.paired_corpus import Corpus, write_corpus

from speechclip.errors import Damaged, InvalidInput
from speechclip.evaluation.evaluator import validator
from speechclip.storage import Storage
from speechclip.training.checkpoint import HEAD, RunFolder
from speechclip.training.metrics import EVENTS, read_metrics
from speechclip.training.progress import TrainingProgress
from speechclip.training.recipe import Recipe
from speechclip.training.run import load_run
from speechclip.training.world import World

RECIPE = Recipe(
    name="small", batch_size=9, max_steps=12, warmup_steps=2, learning_rate=1e-3, num_heads=4, feed_forward_factor=2,
    normalize_states="s3prl", image_projection=True, embedding_width=8, is_temperature_learnable=True, window="sliced",
    max_frames=15, validate_every=4, checkpoint_every=5, seed=1,
)  # fmt: skip


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("trainer") / "store"))


def dev(corpus: Corpus) -> Any:
    return validator(corpus.manifest, "dev", *corpus.features())


def interrupt_at(step: int) -> Any:
    """A validation that returns 0.5, and crashes at `step`."""
    count = 0

    def validate(head: torch.nn.Module, world: World) -> float:
        nonlocal count
        count += RECIPE.validate_every
        if count == step:
            raise Interrupted
        return 0.5

    return validate


def test_it_learns_and_keeps_the_head_that_was_best_on_dev(corpus: Corpus, tmp_path: Path):
    recipe = msgspec.structs.replace(RECIPE, max_steps=120, validate_every=30, checkpoint_every=50)
    seen: list[TrainingProgress] = []
    run = str(tmp_path / "run")
    info = corpus.trainer(recipe, run, validate=dev(corpus), on_progress=seen.append).fit()
    lines = read_metrics(Storage(run))
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    recalls = {line["step"]: line["dev_recall_at_10"] for line in lines if "dev_recall_at_10" in line}
    assert info.best is not None
    assert info.best.recall == max(recalls.values()) == recalls[info.head_step]
    # On a slow machine there are other reports between these.
    assert [progress.step for progress in seen if progress.recall is not None] == [30, 60, 90, 120]
    assert seen[-1].eta_seconds == 0
    assert all(line["num_bytes"] > 0 and line["wait_seconds"] >= 0 for line in lines)
    assert list((tmp_path / "run" / EVENTS).iterdir())
    assert set(RunFolder(run).steps()) == {100, 120, info.head_step}
    assert load_run(run).info == info == RunFolder(run).finished()


def test_an_interrupted_run_continues_to_the_same_bits(corpus: Corpus, tmp_path: Path):
    straight, cut = str(tmp_path / "straight"), str(tmp_path / "cut")
    whole = corpus.trainer(RECIPE, straight, validate=interrupt_at(-1)).fit()
    with pytest.raises(Interrupted):
        corpus.trainer(RECIPE, cut, validate=interrupt_at(8)).fit()
    assert RunFolder(cut).finished() is None
    assert RunFolder(cut).steps() == [4, 5]
    torch.manual_seed(99)
    resumed = corpus.trainer(RECIPE, cut, validate=interrupt_at(-1))
    info = resumed.fit()
    assert info == whole
    last = [RunFolder(run).checkpoint(12) for run in (straight, cut)]
    assert last[0] == last[1]
    losses = [[line["loss"] for line in read_metrics(Storage(run))] for run in (straight, cut)]
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]


@pytest.mark.parametrize("seed", range(4))
def test_a_run_interrupted_at_any_step_continues_to_the_same_bits(corpus: Corpus, tmp_path: Path, seed: int):
    recipe = msgspec.structs.replace(RECIPE, checkpoint_every=3)
    straight, cut = str(tmp_path / "straight"), str(tmp_path / "cut")
    whole = corpus.trainer(recipe, straight).fit()
    for last in sorted(random.Random(seed).sample(range(1, recipe.max_steps), 2)):
        trainer = corpus.trainer(recipe, cut)
        trainer.take_step = until(last, trainer.take_step)  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            trainer.fit()
        assert trainer.step == last
    assert corpus.trainer(recipe, cut).fit() == whole
    losses = [[line["loss"] for line in read_metrics(Storage(run))] for run in (straight, cut)]
    assert losses[0] == losses[1]


def until(last: int, take_step: Any) -> Any:
    """`take_step` that crashes at the step after `last`."""

    def crash_after(batches: Any) -> Any:
        if crash_after.trainer.step == last:
            raise Interrupted
        return take_step(batches)

    crash_after.trainer = take_step.__self__  # type: ignore[attr-defined]
    return crash_after


def test_a_run_of_another_identity_is_not_continued(corpus: Corpus, tmp_path: Path):
    run = str(tmp_path / "run")
    with pytest.raises(Interrupted):
        corpus.trainer(RECIPE, run, validate=interrupt_at(8)).fit()
    other = msgspec.structs.replace(RECIPE, seed=2)
    with pytest.raises(InvalidInput, match=r"holds step 5 of another run \(recipe\.seed was 1, is 2\); train"):
        corpus.trainer(other, run).fit()
    elsewhere = corpus.trainer(RECIPE, run)
    elsewhere.identity = msgspec.structs.replace(elsewhere.identity, manifest="f" * 64, catalog_version=9)
    with pytest.raises(InvalidInput, match=r"manifest was .*; catalog_version was 2, is 9"):
        elsewhere.fit()


def test_other_batches_under_the_same_identity_are_an_error(corpus: Corpus, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        corpus.trainer(RECIPE, str(run), validate=interrupt_at(8)).fit()
    trainer = corpus.trainer(RECIPE, str(run))
    trainer.loader.order = corpus.loader(msgspec.structs.replace(RECIPE, seed=5)).order
    with pytest.raises(InvalidInput, match="step 5 was reached by other batches"):
        trainer.fit()


def test_a_run_that_diverges_ends_with_an_error_and_stores_no_head_of_it(corpus: Corpus, tmp_path: Path):
    recipe = msgspec.structs.replace(RECIPE, learning_rate=1e30, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(InvalidInput, match=r"step \d+: gradients of norm nan, the run has diverged; lower"):
        corpus.trainer(recipe, str(tmp_path / "run"), validate=dev(corpus)).fit()
    folder = RunFolder(str(tmp_path / "run"))
    assert folder.finished() is None
    losses = [line["loss"] for line in read_metrics(folder.storage)]
    assert len(losses) == folder.steps()[-1] < 12
    assert torch.tensor(losses).isfinite().all()


def test_an_incomplete_checkpoint_is_ignored(corpus: Corpus, tmp_path: Path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000005").mkdir(parents=True)
    (run / "checkpoints" / "step-000005" / HEAD).write_bytes(b"half")
    (run / HEAD).write_bytes(b"half")
    info = corpus.trainer(RECIPE, str(run)).fit()
    assert info.head_step == 12
    assert load_run(str(run)).info == info


def test_a_second_training_in_the_same_folder_is_an_error(corpus: Corpus, tmp_path: Path):
    first, second = (corpus.trainer(RECIPE, str(tmp_path / "run")) for _ in range(2))
    second.resume()
    first.fit()
    second.resume = lambda: None  # type: ignore[method-assign]
    with pytest.raises(InvalidInput, match="another training writes"):
        second.fit()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"\xff": 1}'])
def test_a_wrong_record_of_a_run_is_damaged(tmp_path: Path, content: bytes):
    folder = RunFolder(str(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "step-000005").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000005" / "checkpoint.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"step-000005/checkpoint\.json: no record of a run"):
        folder.last_checkpoint()
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"run\.json: no record of a run"):
        load_run(str(tmp_path / "run"))


def test_a_changed_head_file_is_damaged(corpus: Corpus, tmp_path: Path):
    corpus.trainer(RECIPE, str(tmp_path / "run")).fit()
    file = tmp_path / "run" / HEAD
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match="its sha256 is not"):
        load_run(str(tmp_path / "run"))
    with pytest.raises(InvalidInput, match="no finished run"):
        load_run(str(tmp_path / "nowhere"))


def test_a_run_in_a_bucket_continues_and_keeps_its_metrics(corpus: Corpus, s3_uri: str):
    with pytest.raises(Interrupted):
        corpus.trainer(RECIPE, s3_uri, validate=interrupt_at(8)).fit()
    corpus.trainer(RECIPE, s3_uri).fit()
    storage = Storage(s3_uri)
    assert [line["step"] for line in read_metrics(storage)] == list(range(1, 13))
    assert len([path for path in storage.list(EVENTS) if "tfevents" in path]) == 2
    assert load_run(s3_uri).info.num_steps == 12


def work(rank: int, corpus: Corpus, run: str, meeting: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        corpus.trainer(RECIPE, run, World.current(), validate=dev(corpus)).fit()
    finally:
        torch.distributed.destroy_process_group()


def test_two_workers_get_the_result_of_one(corpus: Corpus, tmp_path: Path):
    # All at once: nine rows for two workers, dropout, windows, a learnable temperature and an image projection.
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    alone = corpus.trainer(RECIPE, one, validate=dev(corpus)).fit()
    meeting = str(tmp_path / "meeting")
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, corpus, two, meeting))
    other.start()
    work(0, corpus, two, meeting)
    other.join(60)
    assert other.exitcode == 0
    together = RunFolder(two).finished()
    assert together is not None
    assert (together.order_digest, together.best) == (alone.order_digest, alone.best)
    lines = [read_metrics(Storage(run)) for run in (one, two)]
    for single, double in zip(*lines, strict=True):
        assert double["loss"] == pytest.approx(single["loss"], abs=1e-5)
        assert double["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-4)
    weights = [RunFolder(run).read_checkpoint(RunFolder(run).checkpoint(12))[0] for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def work_until_the_first_checkpoint(corpus: Corpus, run: str) -> None:
    trainer = corpus.trainer(RECIPE, run)
    trainer.folder.prune = lambda keep: os._exit(9)  # type: ignore[method-assign]  # right after it counts
    trainer.fit()


def test_a_run_killed_right_after_a_checkpoint_has_every_line_once(corpus: Corpus, tmp_path: Path):
    run = str(tmp_path / "run")
    first = multiprocessing.get_context("spawn").Process(target=work_until_the_first_checkpoint, args=(corpus, run))
    first.start()
    first.join(60)
    assert first.exitcode == 9
    corpus.trainer(RECIPE, run).fit()
    assert [line["step"] for line in read_metrics(Storage(run))] == list(range(1, 13))
