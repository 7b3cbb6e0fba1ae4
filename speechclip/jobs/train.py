"""Training on Ray Train. The workers read frames from the store and exchange gradients by torch.distributed.

After a failure the workers start again, as many as before or fewer, from our own checkpoints in the run's folder.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec
import ray
import ray.train.torch
import torch

from speechclip.errors import InvalidInput
from speechclip.evaluation.evaluator import validator
from speechclip.jobs.cluster import connect
from speechclip.jobs.mailbox import Mailbox, flush, post
from speechclip.jobs.metrics import TrainMetrics
from speechclip.jobs.nodes import Notify
from speechclip.jobs.workers import WorkerCount, run_workers
from speechclip.manifest import Manifest
from speechclip.records import Record, to_json
from speechclip.runtime_env import RuntimeEnv
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import choose_feature_set, open_pair, open_vectors
from speechclip.training.batches import Order, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import RunFolder, check_continues
from speechclip.training.identity import FeatureSetRef, RunIdentity, RunInfo, what_differs
from speechclip.training.loader import Loader
from speechclip.training.progress import TrainingProgress
from speechclip.training.recipe import Recipe
from speechclip.training.run import find_tower
from speechclip.training.trainer import Trainer
from speechclip.training.vocabulary import Vocabulary, count_tokens
from speechclip.training.world import World

logger = logging.getLogger(__name__)


class TrainRequest(Record, frozen=True):
    """A run to train.

    `speech`, `image` and `text` choose a feature set if the store has several. Without `catalog_version` the run uses
    the version that it began with, or the newest one. The fields after `catalog_version`, except `text`, change only
    speed. If fewer than `workers` fit on the cluster, the run goes on with at least `min_workers` (by default all) and
    takes more as nodes come.
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
    min_workers: int | None = None
    node_wait_seconds: float = 0.0


class _Assignment(Record, frozen=True):
    """What the driver sends to each worker."""

    request: TrainRequest
    identity: RunIdentity


def train(
    request: TrainRequest,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    notify: Notify | None = None,
) -> RunInfo:
    """Train the head, or go on from the last checkpoint in its folder. A finished run is returned as it is.

    `on_progress` gets each progress report of worker 0, `notify` sentences such as "goes on after step 400". Raises
    `InvalidInput` if the folder holds another run or a private Ray is too small, and `WorkLeft` if workers fail again
    and again or do not fit on the cluster.
    """
    folder, notify = RunFolder(request.out), notify or logger.info
    identity, vocabulary = identify(request, folder)
    finished = folder.finished()
    if finished is not None and finished.identity == identity:
        notify("finished already, nothing to train")
        return finished
    count, last = _worker_count(request), check_continues(folder, identity)
    if last is not None:
        notify(f"goes on after step {last.step}")
    if vocabulary is not None:
        folder.write_vocabulary(vocabulary)
    if not ray.is_initialized():
        notify("starting Ray")
    connect(request.num_cpus, request.runtime_env)
    report, metrics = on_progress or _log, TrainMetrics()

    def show(message: bytes) -> None:
        progress = msgspec.json.decode(message, type=TrainingProgress)
        metrics.show(progress)
        report(progress)

    def last_step() -> int:
        last = folder.last_checkpoint()
        return last.step if last else 0

    with Mailbox(show) as messages:
        config = {"assignment": to_json(_Assignment(request=request, identity=identity)), "messages": messages}
        run_workers(_train_on_worker, config, count, last_step=last_step, notify=notify)
    finished = folder.finished()
    assert finished is not None
    return finished


def identify(request: TrainRequest, folder: RunFolder) -> tuple[RunIdentity, Vocabulary | None]:
    """What the run is made from, and the vocabulary if the head hears keywords.

    Raises `InvalidInput` if the folder holds a finished run of another identity, or if the recipe does not fit these
    features.
    """
    finished, last = folder.finished(), folder.last_checkpoint()
    known = finished or last
    if finished is not None and finished.identity.imported:
        raise InvalidInput(f"{request.out}: holds a head imported from a checkpoint", "train into a new folder")
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
    # Images, texts and keywords must be vectors of the same CLIP.
    text = choose_feature_set(snapshot, "text", request.text or image.encoder_name) if recipe.text_weight else None
    source = FeatureSetRef.of(text.spec, text.encoder_name) if text else None
    vocabulary, tower = None, None
    if recipe.has_keywords:
        tower = find_tower(image.encoder_name, image.spec, text.spec.codec if text else "fp16")
        if text and text.spec.fingerprint != tower.fingerprint:
            raise InvalidInput(
                f"texts {text.spec.fingerprint} and images of {image.encoder_name} are of different CLIP models, but a "
                "head with keywords needs both of the same",
                "choose the texts of the image's CLIP by --text",
            )
        vocabulary = count_tokens(caption for caption in manifest.table["text"].to_pylist() if caption)
        source = source or FeatureSetRef.of(tower, image.encoder_name)
    identity = RunIdentity(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=FeatureSetRef.of(speech.spec, speech.encoder_name),
        image=FeatureSetRef.of(image.spec, image.encoder_name),
        recipe=recipe,
        head=configure_head(recipe, speech.spec, image.spec, tower, vocabulary),
        text=source,
        vocabulary=vocabulary.digest if vocabulary else "",
    )
    if finished is not None and finished.identity != identity:
        raise InvalidInput(
            f"{request.out}: holds a finished run of another identity ({what_differs(finished.identity, identity)})",
            "train into a new folder",
        )
    return identity, vocabulary


def _check_targets(request: TrainRequest, manifest: Manifest) -> None:
    """Raise `InvalidInput` if no training row has an image, or a text although the recipe needs texts."""
    recipe = request.recipe
    table = manifest.select([recipe.train_split]).table
    needed = {"image": "an image"} | ({"text": "a text"} if recipe.text_weight or recipe.has_keywords else {})
    for name, one in needed.items():
        if table[f"{name}_key"].null_count == len(table):
            raise InvalidInput(
                f"{request.manifest}: none of the {len(table):,} utterances of split {recipe.train_split!r} has "
                f"{one}, and recipe {recipe.name} ({recipe.head}) needs them",
                f"ingest the corpus with its {name}s, or choose another recipe",
            )


def _train_on_worker(config: dict[str, Any]) -> None:
    """What each worker runs: train from the last checkpoint, or from the start, to the end."""
    assignment = msgspec.json.decode(config["assignment"], type=_Assignment)
    request, identity, recipe = assignment.request, assignment.identity, assignment.request.recipe
    torch.set_num_threads(_threads())
    store = FeatureStore(request.store)
    # Read the copy in the store, because the driver's file may not exist on this node.
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
        on_progress=lambda progress: post(config["messages"], to_json(progress)),
    )
    trainer.fit()
    flush(config["messages"])


def _threads() -> int:
    """This worker's share of the machine's CPUs. Ray would give every worker only one thread."""
    workers_here: int = ray.train.get_context().get_local_world_size()
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


def _worker_count(request: TrainRequest) -> WorkerCount:
    """How many workers the run may have. Raises `InvalidInput` for more workers than a batch has rows."""
    workers = request.workers
    if workers < 1 or workers > request.recipe.batch_size:
        raise InvalidInput(
            f"{workers} workers asked for, expected 1 to {request.recipe.batch_size}, the rows of a batch",
            "change --workers",
        )
    minimum = workers if request.min_workers is None else request.min_workers
    if minimum < 1 or minimum > workers:
        raise InvalidInput(f"at least {minimum} workers asked for, expected 1 to {workers}", "change --min-workers")
    return WorkerCount(workers, minimum, request.node_wait_seconds)


def _log(progress: TrainingProgress) -> None:
    logger.info("step %d of %d, loss %.4f", progress.step, progress.max_steps, progress.loss)
