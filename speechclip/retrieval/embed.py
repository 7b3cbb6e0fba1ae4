"""Makes embeddings of all stored utterances and stores them, as `speechclip embed` does."""

import dataclasses
import time
from collections.abc import Iterator

from speechclip.encoders.threads import one_thread
from speechclip.featurization.driver import Work
from speechclip.featurization.plan import TaskSizes, cover, open_plan
from speechclip.featurization.tasks import stored_seconds
from speechclip.manifest import Manifest
from speechclip.records import Receipt
from speechclip.retrieval.embeddings import embed_speech
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import open_frames
from speechclip.store.vectors import write_chunk
from speechclip.training.identity import RunInfo
from speechclip.training.run import Run


def embedding_spec(run_info: RunInfo) -> EncoderSpec:
    """The spec of a run's speech embeddings, from which their fingerprint follows.

    It has the sha256 of the head as weights and names the feature set that the head reads as `parent`.
    """
    untrained = "-untrained" if run_info.identity.untrained else ""
    return EncoderSpec(
        name=f"speechclip-{run_info.identity.recipe.head}{untrained}",
        family="head",
        modality="speech",
        weights=run_info.head_sha256,
        is_trained=not untrained,
        width=run_info.identity.head.embedding_width,
        codec="fp32",
        architecture={"parent": run_info.identity.speech.fingerprint},
    )


def prepare_embedding(store: FeatureStore, manifest: Manifest, trained: Run, sizes: TaskSizes) -> Work:
    """Plan the utterances of the manifest that have stored frames and no embedding yet.

    Utterances whose frames are not stored count as missing.
    """
    spec = embedding_spec(trained.info)
    snapshot = store.snapshot()
    snapshot.check_tags()
    store.add_spec(spec, f"head of {spec.architecture['parent']}")
    store.add_manifest(manifest)
    frames = open_frames(snapshot, spec.architecture["parent"])
    coverage = cover(manifest, spec, snapshot)
    possible = tuple(asset for asset in coverage.missing if asset.key in frames)
    plan = open_plan(store, manifest, [dataclasses.replace(coverage, missing=possible)], snapshot, sizes)
    return Work(store, manifest, {}, {spec.fingerprint: spec}, (coverage,), plan)


def embed_tasks(work: Work, trained: Run) -> Iterator[Receipt]:
    """Do all open tasks of the plan and yield a receipt for each: read the frames, embed them, write the embeddings."""
    (spec,) = work.specs.values()
    frames = open_frames(work.store.snapshot(), spec.architecture["parent"])
    for task in work.plan:
        started = time.monotonic()
        keys = [asset.key for asset in task.assets if asset.key in frames]
        # On one thread, so that the stored bytes do not depend on the machine's cores.
        with one_thread():
            features = dict(zip(keys, embed_speech(trained.head, frames, keys), strict=True))
        embedded = time.monotonic()
        path, stored, num_bytes = write_chunk(work.store.storage, spec, task, features)
        ended = time.monotonic()
        yield Receipt(
            task=task.id,
            feature_set=task.feature_set,
            shard=path,
            stored=stored,
            rejected=(),
            num_bytes=num_bytes,
            seconds=ended - started,
            write_seconds=ended - embedded,
            num_encoded=len(stored),
            speech_seconds=stored_seconds(task, stored),
        )
