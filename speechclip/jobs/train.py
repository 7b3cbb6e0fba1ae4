"""Training on Ray Train: workers read frames straight from the store and speak to each other by torch's collectives.

Our own checkpoints in the run's folder are the truth. Ray starts the workers, and starts them again after a failure;
they then go on from the folder's last checkpoint.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import msgspec
import ray
import ray.train
import ray.train.torch
import torch

from speechclip.errors import InvalidInput, SpeechClipError, WorkLeft
from speechclip.evaluation.evaluator import validator
from speechclip.jobs.board import Board
from speechclip.jobs.cluster import connect
from speechclip.jobs.meters import TrainMeters
from speechclip.manifest import Manifest
from speechclip.records import Record, to_json
from speechclip.runtime_env import RuntimeEnv
from speechclip.store import FeatureStore
from speechclip.training.batches import Order, choose_feature_set, open_pair, open_vectors, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import (
    FeatureSource,
    RunFolder,
    RunIdentity,
    RunInfo,
    check_continues,
    find_tower,
    what_differs,
)
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.trainer import Progress, Trainer
from speechclip.training.vocabulary import Vocabulary, count_tokens
from speechclip.training.world import World

logger = logging.getLogger(__name__)

# The least share of a logical CPU that a worker is given; below it, more workers only wait for each other.
LEAST_CPUS = 0.25
MAX_FAILURES = 2
ABORT_SECONDS = 30.0
# How often Ray tries to find room for the workers; on a cluster it waits longer, which may have to start nodes first.
MAX_STARTS = 2
CLUSTER_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300"}
# A private cluster is never preempted and reports to nobody: fewer processes to start, a quicker end.
PRIVATE_SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


class TrainRequest(Record, frozen=True):
    """A run to train. `speech`, `image` and `text` name feature sets where the store has several; without
    `catalog_version` the run's own is taken, or the newest. What follows changes only speed.
    """

    manifest: str
    store: str
    out: str
    recipe: Recipe
    speech: str | None = None
    image: str | None = None
    catalog_version: int | None = None
    workers: int = 1
    num_cpus: int | None = None
    read_threads: int = 2
    text: str | None = None
    runtime_env: RuntimeEnv = RuntimeEnv()


class _Assignment(Record, frozen=True):
    """What each worker is told."""

    request: TrainRequest
    identity: RunIdentity


class _InterruptibleTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A trainer that Ctrl-C ends by `KeyboardInterrupt`: Ray's handler would end this process, silent and with 1."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers and give their room back: the cluster may outlive this run."""
        if self.controller is None:
            return
        # The controller answers by its death.
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(self.controller.abort.remote(), timeout=ABORT_SECONDS)
        ray.kill(self.controller)


def train(
    request: TrainRequest,
    on_progress: Callable[[Progress], None] | None = None,
    on_found: Callable[[str], None] | None = None,
) -> RunInfo:
    """Train the head, or go on where its folder stopped; a finished run of the same identity is returned as it is.

    `on_found` is told in words what of the run the folder holds already.
    `InvalidInput` where the folder holds another run or the cluster is too small, `WorkLeft` where workers fail.
    """
    folder, found = RunFolder(request.out), on_found or logger.info
    identity, vocabulary = identify(request, folder)
    finished = folder.finished()
    if finished is not None and finished.identity == identity:
        found("finished already, nothing to train")
        return finished
    last = check_continues(folder, identity)
    if last is not None:
        found(f"goes on after step {last.step}")
    if vocabulary is not None:
        folder.write_vocabulary(vocabulary)
    if not ray.is_initialized():
        found("starting Ray")
    connect(request.num_cpus, request.runtime_env)
    scaling, tell, meters = _scale(request), on_progress or _log, TrainMeters()

    def show(line: bytes) -> None:
        progress = msgspec.json.decode(line, type=Progress)
        meters.show(progress)
        tell(progress)

    with (
        Board(show) as lines,
        tempfile.TemporaryDirectory(prefix="sc-train-") as ray_folder,
    ):
        trainer = _InterruptibleTrainer(
            _work,
            train_loop_config={"assignment": to_json(_Assignment(request=request, identity=identity)), "lines": lines},
            scaling_config=scaling,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=ray_folder,
                failure_config=ray.train.FailureConfig(
                    max_failures=MAX_FAILURES, controller_failure_limit=MAX_STARTS - 1
                ),
            ),
        )
        _run(trainer, request)
    finished = folder.finished()
    assert finished is not None
    return finished


def identify(request: TrainRequest, folder: RunFolder) -> tuple[RunIdentity, Vocabulary | None]:
    """What the run is made from, and the words of a head with keywords.

    `InvalidInput` where the folder holds a finished run of something else, or the recipe's head can't stand on these
    features.
    """
    finished, last = folder.finished(), folder.last_checkpoint()
    known = finished or last
    if finished is not None and finished.identity.imported:
        raise InvalidInput(f"{request.out}: holds a head imported from a checkpoint; train into a new folder")
    version = request.catalog_version
    if version is None and known is not None:
        version = known.identity.catalog_version
    store, manifest, recipe = FeatureStore(request.store), Manifest.read(request.manifest), request.recipe
    snapshot = store.snapshot(version)
    store.add_manifest(manifest)
    _check_targets(request, manifest)
    speech = choose_feature_set(snapshot, "speech", request.speech)
    image = choose_feature_set(snapshot, "image", request.image)
    recipe.check_fits(speech.spec)
    # Image, text and keywords must lie in one space: that of the image's CLIP.
    text = choose_feature_set(snapshot, "text", request.text or image.source) if recipe.text_weight else None
    source = FeatureSource.of(text.spec, text.source) if text else None
    vocabulary, tower = None, None
    if recipe.has_keywords:
        tower = find_tower(image.source, image.spec, text.spec.codec if text else "fp16")
        if text and text.spec.fingerprint != tower.fingerprint:
            raise InvalidInput(
                f"texts {text.spec.fingerprint} and images of {image.source} lie in different spaces, and keywords are "
                "read by the text tower of one CLIP; name that CLIP's texts by --text"
            )
        vocabulary = count_tokens(caption for caption in manifest.table["text"].to_pylist() if caption)
        source = source or FeatureSource.of(tower, image.source)
    identity = RunIdentity(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=FeatureSource.of(speech.spec, speech.source),
        image=FeatureSource.of(image.spec, image.source),
        recipe=recipe,
        head=configure_head(recipe, speech.spec, image.spec, tower, vocabulary),
        text=source,
        vocabulary=vocabulary.digest if vocabulary else "",
    )
    if finished is not None and finished.identity != identity:
        raise InvalidInput(
            f"{request.out}: holds a finished run of another making ({what_differs(finished.identity, identity)}); "
            "train into a new folder"
        )
    return identity, vocabulary


def _check_targets(request: TrainRequest, manifest: Manifest) -> None:
    """Refuse a manifest whose training rows lack what the recipe trains towards, or the captions of its vocabulary."""
    recipe = request.recipe
    table = manifest.select([recipe.train_split]).table
    needed = {"image": "an image"} | ({"text": "a text"} if recipe.text_weight or recipe.has_keywords else {})
    for name, one in needed.items():
        if table[f"{name}_key"].null_count == len(table):
            raise InvalidInput(
                f"{request.manifest}: none of the {len(table):,} utterances of split {recipe.train_split!r} has "
                f"{one}, and recipe {recipe.name} ({recipe.head}) needs them; "
                f"ingest the corpus with its {name}s, or choose another recipe"
            )


def _work(config: dict[str, Any]) -> None:
    """One worker, from start to end of the run, or from the last checkpoint."""
    assignment = msgspec.json.decode(config["assignment"], type=_Assignment)
    request, identity, recipe = assignment.request, assignment.identity, assignment.request.recipe
    torch.set_num_threads(_threads())
    store = FeatureStore(request.store)
    # The copy in the store: a path of the driver's machine means nothing on another node.
    manifest = store.read_manifest(identity.manifest)
    snapshot = store.snapshot(identity.catalog_version)
    frames, vectors = open_pair(snapshot, identity.speech.fingerprint, identity.image.fingerprint)
    texts = open_vectors(snapshot, identity.text.fingerprint) if identity.text and recipe.text_weight else None
    order = Order(stored_rows(manifest, recipe.train_split, frames, vectors, texts), recipe.batch_size, recipe.seed)
    folder = RunFolder(request.out)
    world = World.current()
    trainer = Trainer(
        identity=identity,
        loader=Loader(
            order, frames, vectors, texts=texts, recipe=recipe, world=world, read_threads=request.read_threads
        ),
        folder=folder,
        vocabulary=folder.read_vocabulary(identity),
        validate=validator(manifest, recipe.dev_split, frames, vectors),
        device=ray.train.torch.get_device(),
        on_progress=lambda progress: config["lines"].put.remote(to_json(progress)),
    )
    trainer.fit()


def _threads() -> int:
    """This worker's share of the machine's CPUs: Ray itself leaves every worker one thread."""
    beside_each_other: int = ray.train.get_context().get_local_world_size()
    return max(1, len(os.sched_getaffinity(0)) // beside_each_other)


def _scale(request: TrainRequest) -> ray.train.ScalingConfig:
    """Workers that fit beside each other, each with a share of the CPUs; `InvalidInput` where they can't."""
    there = ray.cluster_resources()
    cpus, gpus, workers = there.get("CPU", 0.0), there.get("GPU", 0.0), request.workers
    if workers < 1 or workers > request.recipe.batch_size:
        raise InvalidInput(
            f"{workers} workers asked for, expected 1 to the batch's {request.recipe.batch_size}; change --workers"
        )
    share = min(1.0, int(100 * cpus / workers) / 100)
    if share < LEAST_CPUS:
        raise InvalidInput(
            f"{workers} workers need {workers * LEAST_CPUS:g} CPUs, the Ray cluster has {cpus:g}; "
            "ask for fewer by --workers, or add nodes"
        )
    use_gpu = gpus >= workers
    resources = {"CPU": share} | ({"GPU": 1} if use_gpu else {})
    return ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources)


def _run(trainer: _InterruptibleTrainer, request: TrainRequest) -> None:
    """Run Ray's trainer to its end and say in one sentence why it ended, if it failed."""
    for name, value in (CLUSTER_SETTINGS if os.environ.get("RAY_ADDRESS") else PRIVATE_SETTINGS).items():
        os.environ.setdefault(name, value)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except ray.train.WorkerGroupError as error:
        causes = list(error.worker_failures.values())
        for cause in causes:
            if isinstance(cause, SpeechClipError):
                raise cause from None
        raise WorkLeft(
            f"training failed {MAX_FAILURES + 1} times, last by {causes[0] if causes else error}; "
            f"run it again to go on from the last checkpoint in {request.out}"
        ) from error
    except ray.train.ControllerError as error:
        raise WorkLeft(
            f"Ray could not start {request.workers} workers ({error.controller_failure}); "
            "wait for room in the cluster or ask for fewer by --workers"
        ) from error


def _log(progress: Progress) -> None:
    logger.info("step %d of %d, loss %.4f", progress.step, progress.max_steps, progress.loss)
