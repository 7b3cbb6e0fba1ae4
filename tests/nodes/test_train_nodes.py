"""Training on several nodes, submitted as a user does it. Nodes are lost and others come in the middle of it."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import yaml
from support.fleet import Fleet
from support.paired_corpus import Corpus, write_corpus
from support.ray_hosts import wait_until

from speechclip.evaluation.evaluator import validator
from speechclip.storage import Storage
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import RunInfo
from speechclip.training.metrics import read_metrics
from speechclip.training.recipe import Recipe
from speechclip.training.run import load_run

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.ray

WORKER = "RayTrainWorker"
RECIPE = Recipe(
    name="small", batch_size=9, max_steps=120, warmup_steps=20, learning_rate=1e-3, num_heads=4, feed_forward_factor=2,
    image_projection=True, embedding_width=8, validate_every=30, checkpoint_every=5,
)  # fmt: skip


@dataclass(frozen=True)
class Course:
    """A corpus and a recipe, and what one process without Ray trains from them."""

    corpus: Corpus
    folder: Path
    recipe: Recipe
    alone: RunInfo

    def options(self, run: Path, *more: str) -> list[str]:
        where = ["--manifest", str(self.folder / "m.parquet"), "--store", self.corpus.store_uri, "--out", str(run)]
        return [*where, "--recipe", str(self.folder / "small.yaml"), *more]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    return make_course(write_corpus(str(folder / "store")), folder, RECIPE)


def make_course(corpus: Corpus, folder: Path, recipe: Recipe) -> Course:
    corpus.manifest.write(str(folder / "m.parquet"))
    (folder / "small.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(recipe)))
    check = validator(corpus.manifest, "dev", *corpus.features())
    return Course(corpus, folder, recipe, corpus.trainer(recipe, str(folder / "alone"), validate=check).fit())


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet, course: Course) -> Path:
    """A run of two workers on two nodes without any failure."""
    fleet.resize(3)
    run = course.folder / "undisturbed"
    fleet.rays.finish(fleet.submit("train", *course.options(run, "--workers", "2")))
    assert_same(run, course)
    return run


@pytest.mark.slow
def test_a_killed_training_node_does_not_change_the_result(
    fleet: Fleet, course: Course, undisturbed: Path, tmp_path: Path
) -> None:
    fleet.resize(3)
    run = tmp_path / "run"
    job = fleet.submit("train", *course.options(run, "--workers", "2"))
    wait_for_checkpoint(fleet, job, run, 5)
    assert not fleet.places(job, "Messages"), "the mailbox stays with the driver"
    victim = next(iter(fleet.places(job, WORKER)))
    wait_for_checkpoint(fleet, job, run, 10)
    fleet.lose(victim)
    lost, step = time.monotonic(), RunFolder(str(run)).steps()[-1]
    wait_for_checkpoint(fleet, job, run, step + 10)
    logger.info("%.0f s from the loss of a training node to the next checkpoint", time.monotonic() - lost)
    log = fleet.rays.finish(job)
    assert "workers failed" in log
    assert "goes on after step" in log
    assert_same(run, course)
    # As many workers as before, so the same bits.
    assert load_run(str(run)).info.head_sha256 == load_run(str(undisturbed)).info.head_sha256
    assert losses(run) == losses(undisturbed)


def test_evaluate_and_embed_are_jobs_whose_last_line_is_their_result(
    fleet: Fleet, course: Course, undisturbed: Path
) -> None:
    there = ["--run", str(undisturbed), "--manifest", str(course.folder / "m.parquet"), "--store"]
    there += [course.corpus.store_uri]
    jobs = [fleet.submit("evaluate", *there, "--split", "dev"), fleet.submit("embed", *there)]
    report, summary = (json.loads(fleet.rays.finish(job).splitlines()[-1]) for job in jobs)
    assert (report["split"], report["head_step"]) == ("dev", load_run(str(undisturbed)).info.head_step)
    assert summary["encoded"] == summary["planned"] - summary["missing"] > 0


def wait_for_checkpoint(fleet: Fleet, job: str, run: Path, step: int) -> None:
    """Return once the run stored a checkpoint of that step or a later one, and is not over."""
    folder = RunFolder(str(run))
    wait_until(
        lambda: fleet.is_over(job) or bool([found for found in folder.steps() if found >= step]),
        f"step {step}", 240, lambda: fleet.rays.log(job),
    )  # fmt: skip
    assert not fleet.is_over(job), fleet.rays.log(job)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(Storage(str(run)))]


def assert_same(run: Path, course: Course) -> None:
    """The same batches in the same order, each step told once, and the same loss within rounding."""
    info, alone = load_run(str(run)).info, course.folder / "alone"
    assert info.order_digest == course.alone.order_digest
    lines = read_metrics(Storage(str(run)))
    assert [line["step"] for line in lines] == list(range(1, course.recipe.max_steps + 1))
    assert losses(run)[-1] == pytest.approx(losses(alone)[-1], abs=1e-3)


@pytest.fixture(scope="module")
def long_course(course: Course, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The same course with so many steps that nodes can be lost and come during the run."""
    return make_course(course.corpus, tmp_path_factory.mktemp("long"), msgspec.structs.replace(RECIPE, max_steps=4000))


@pytest.mark.slow
def test_an_elastic_run_goes_from_two_workers_to_one_and_back(
    fleet: Fleet, long_course: Course, tmp_path: Path
) -> None:
    fleet.resize(2)
    run = tmp_path / "run"
    job = fleet.submit("train", *long_course.options(run, "--workers", "2", "--min-workers", "1"))
    wait_for_checkpoint(fleet, job, run, 5)
    assert len(fleet.actors(job, WORKER)) == 2
    fleet.lose(next(iter(fleet.places(job, WORKER))))
    lost, step = time.monotonic(), RunFolder(str(run)).steps()[-1]
    wait_for_checkpoint(fleet, job, run, step + 10)
    logger.info("%.0f s from the loss of one of two nodes to the next checkpoint", time.monotonic() - lost)
    assert len(fleet.actors(job, WORKER)) == 1
    fleet.resize(2)
    came = time.monotonic()
    wait_until(lambda: len(fleet.actors(job, WORKER)) == 2, "two workers again", 180, lambda: fleet.rays.log(job))
    logger.info("%.0f s from the arrival of a node to two workers", time.monotonic() - came)
    fleet.rays.finish(job)
    assert_same(run, long_course)
