"""Training of heads with keywords, towards images and texts, with a CLIP of real structure."""

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.paired_corpus import Corpus, write_corpus

from speechclip.errors import Damaged, InvalidInput
from speechclip.evaluation.evaluator import validator
from speechclip.retrieval.embeddings import embed_speech
from speechclip.storage import Storage
from speechclip.training.checkpoint import RunFolder
from speechclip.training.metrics import read_metrics
from speechclip.training.recipe import Recipe
from speechclip.training.run import build_head, load_run
from speechclip.training.vocabulary import Vocabulary
from speechclip.training.world import World

RECIPE = Recipe(
    name="keywords", head="hybrid", batch_size=9, max_steps=20, warmup_steps=2, learning_rate=1e-3, num_keywords=3,
    normalize_states="s3prl", is_temperature_learnable=True, window="sliced", max_frames=15, validate_every=5,
    checkpoint_every=5, norm_scope="synchronised", seed=1,
)  # fmt: skip
HEADS = ("cascaded", "hybrid", "cascaded-plus", "hybrid-plus")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("keyword-training") / "store"), with_clip=True)


def changed(**options: Any) -> Recipe:
    return msgspec.structs.replace(RECIPE, **options)


def losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(Storage(run))]


def interrupt_at(count: int) -> Any:
    calls = 0

    def validate(head: torch.nn.Module, world: World) -> float:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Interrupted
        return 0.5

    return validate


@pytest.mark.parametrize("head", HEADS)
def test_an_interrupted_run_with_keywords_continues_to_the_same_bits(corpus: Corpus, tmp_path: Path, head: str):
    recipe = changed(head=head)
    straight, cut = str(tmp_path / "straight"), str(tmp_path / "cut")
    whole = corpus.trainer(recipe, straight, validate=interrupt_at(0)).fit()
    with pytest.raises(Interrupted):
        corpus.trainer(recipe, cut, validate=interrupt_at(3)).fit()
    assert RunFolder(cut).steps()[-1] == 10
    assert corpus.trainer(recipe, cut, validate=interrupt_at(0)).fit() == whole
    assert losses(cut) == losses(straight)
    assert len(losses(cut)) == 20
    checkpoints = [RunFolder(run).checkpoint(20) for run in (straight, cut)]
    assert checkpoints[0] == checkpoints[1]
    # A checkpoint has the running statistics of the keywords, but nothing of CLIP's text tower.
    names = RunFolder(cut).read_checkpoint(checkpoints[1])[0].keys()
    assert any(name.endswith("running_mean") for name in names)
    assert not any("token_embedding" in name or name.startswith("tower") for name in names)


@pytest.mark.parametrize("off", ["parallel_weight", "cascaded_weight"])
def test_a_run_with_an_untrained_branch_can_continue(corpus: Corpus, tmp_path: Path, off: str):
    recipe = changed(max_steps=6, validate_every=2, checkpoint_every=2, **{off: 0.0})
    whole = corpus.trainer(recipe, str(tmp_path / "straight"), validate=interrupt_at(0)).fit()
    with pytest.raises(Interrupted):
        corpus.trainer(recipe, str(tmp_path / "cut"), validate=interrupt_at(3)).fit()
    assert corpus.trainer(recipe, str(tmp_path / "cut"), validate=interrupt_at(0)).fit() == whole


def work(rank: int, corpus: Corpus, runs: dict[str, Recipe], meeting: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        validate = validator(corpus.manifest, "dev", *corpus.features())
        for run, recipe in runs.items():
            corpus.trainer(recipe, run, World.current(), validate=validate).fit()
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs by two workers: each head with synchronised statistics, one with local ones, one that one worker began."""
    folder = tmp_path_factory.mktemp("two")
    recipes = {head: changed(head=head, text_weight=0.5, accumulation=2) for head in HEADS}
    recipes["local"] = changed(head="cascaded", norm_scope="local", max_steps=5)
    recipes["taken over"] = changed()
    runs = {str(folder / name): recipe for name, recipe in recipes.items()}
    with pytest.raises(Interrupted):
        corpus.trainer(recipes["taken over"], str(folder / "taken over"), validate=interrupt_at(3)).fit()
    arguments = (corpus, runs, str(folder / "meeting"))
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, *arguments))
    other.start()
    work(0, *arguments)
    other.join(60)
    assert other.exitcode == 0
    return {name: str(folder / name) for name in recipes}


@pytest.mark.parametrize("head", HEADS)
def test_two_workers_with_synchronised_statistics_get_the_result_of_one(
    corpus: Corpus, two_workers: dict[str, str], tmp_path: Path, head: str
):
    recipe, one, two = changed(head=head, text_weight=0.5, accumulation=2), str(tmp_path / "one"), two_workers[head]
    alone = corpus.trainer(recipe, one, validate=validator(corpus.manifest, "dev", *corpus.features())).fit()
    together = RunFolder(two).finished()
    assert together is not None
    assert together.order_digest == alone.order_digest
    # The weights differ: before a BatchNorm the gradient of a bias is rounding only, but Adam takes full steps of it.
    for double, single in zip(*(read_metrics(Storage(run)) for run in (two, one)), strict=True):
        assert double["loss"] == pytest.approx(single["loss"], abs=1e-5)
        assert double["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-4)


def test_two_workers_continue_the_run_of_one_worker_in_the_same_order(
    corpus: Corpus, two_workers: dict[str, str], tmp_path: Path
):
    whole = corpus.trainer(changed(), str(tmp_path / "whole"), validate=interrupt_at(0)).fit()
    taken_over = RunFolder(two_workers["taken over"]).finished()
    assert taken_over is not None
    assert taken_over.order_digest == whole.order_digest
    assert losses(two_workers["taken over"]) == pytest.approx(losses(str(tmp_path / "whole")), abs=1e-5)


def test_local_statistics_give_another_result_with_two_workers(
    corpus: Corpus, two_workers: dict[str, str], tmp_path: Path
):
    corpus.trainer(changed(head="cascaded", norm_scope="local", max_steps=5), str(tmp_path / "one")).fit()
    assert losses(two_workers["local"]) != pytest.approx(losses(str(tmp_path / "one")), abs=1e-4)


def test_a_finished_run_with_keywords_gives_the_embeddings_of_its_training(corpus: Corpus, tmp_path: Path):
    run = str(tmp_path / "run")
    trainer = corpus.trainer(changed(max_steps=5), run)
    trainer.fit()
    loaded = load_run(run)
    frames, _ = corpus.features()
    keys = list(frames)[:7]
    torch.testing.assert_close(
        embed_speech(loaded.head, frames, keys), embed_speech(trainer.head.eval(), frames, keys), atol=0, rtol=0
    )
    assert loaded.vocabulary == corpus.vocabulary
    RunFolder(run).write_vocabulary(type(corpus.vocabulary)(ids=corpus.vocabulary.ids[::-1]))
    with pytest.raises(Damaged, match="not the run's vocabulary"):
        load_run(run)


@pytest.mark.parametrize("content", [b"{", b'{"ids": [0]}', b'{"ids": [0, 49406, 49407, -1]}'])
def test_a_wrong_vocabulary_file_is_damaged(corpus: Corpus, tmp_path: Path, content: bytes):
    identity = corpus.identity(changed(head="cascaded"))
    (tmp_path / "vocabulary.json").write_bytes(content)
    with pytest.raises(Damaged, match="not the run's vocabulary"):
        RunFolder(str(tmp_path)).read_vocabulary(identity)


def test_a_finished_run_has_its_own_vocabulary_after_another_training_wrote_one(corpus: Corpus, tmp_path: Path):
    trainer = corpus.trainer(changed(head="cascaded", max_steps=2), str(tmp_path / "run"))
    other = Vocabulary(ids=corpus.vocabulary.ids[::-1])
    RunFolder(str(tmp_path / "run")).write_vocabulary(other)
    trainer.fit()
    assert load_run(str(tmp_path / "run")).vocabulary == corpus.vocabulary


def test_the_text_tower_of_another_clip_is_an_error(corpus: Corpus):
    identity = corpus.identity(RECIPE)
    assert identity.text is not None
    other = msgspec.structs.replace(identity.text, fingerprint="clip-other-text-0123456789ab")
    identity = msgspec.structs.replace(identity, text=other)
    with pytest.raises(InvalidInput, match=r"the head was trained on clip-other-text"):
        build_head(identity, corpus.vocabulary)


@pytest.mark.parametrize("image_weight", [0.0, 0.25])
def test_a_head_can_train_towards_texts_with_or_without_images(corpus: Corpus, tmp_path: Path, image_weight: float):
    recipe = changed(head="parallel", image_weight=image_weight, text_weight=1.0, max_steps=90)
    run = str(tmp_path / "run")
    corpus.trainer(recipe, run).fit()
    lines = read_metrics(Storage(run))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    if image_weight:
        for line in lines:
            assert line["loss"] == pytest.approx(line["parallel_image_loss"] + line["parallel_text_loss"])


def test_without_the_same_image_mask_other_captions_of_the_image_are_negatives(corpus: Corpus, tmp_path: Path):
    first = []
    for is_masked in (True, False):
        recipe = changed(head="parallel", text_weight=1.0, image_weight=0.0, max_steps=1, batch_size=36)
        recipe = msgspec.structs.replace(recipe, is_same_image_masked=is_masked)
        corpus.trainer(recipe, str(tmp_path / f"{is_masked}")).fit()
        first += losses(str(tmp_path / f"{is_masked}"))
    assert first[1] > first[0] + 1e-3


def test_accumulated_batches_keep_their_own_negatives(corpus: Corpus, tmp_path: Path):
    recipe = changed(head="parallel", dropout=0.0, max_steps=1, accumulation=3)
    trainer = corpus.trainer(recipe, str(tmp_path / "run"))
    batches = list(trainer.loader.batches(0, 3))
    expected = [
        sum(trainer.learner.losses(trainer.head(b.frames, b.lengths, b.seeds), b).values()).item() for b in batches
    ]
    assert trainer.take_step(batches)["loss"] == pytest.approx(sum(expected) / 3)
    assert trainer.order_digest == trainer.loader.order.digest(3)
