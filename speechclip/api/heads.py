"""Heads: train one, measure it, embed a corpus with it and search by it."""

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from speechclip.api.rows import open_manifest, open_store
from speechclip.config import RunSettings, whole_path
from speechclip.errors import InvalidInput
from speechclip.evaluation.evaluator import evaluate as evaluate_run
from speechclip.evaluation.report import EvaluationReport
from speechclip.featurization.driver import Summary, featurize_work
from speechclip.manifest import Manifest
from speechclip.records import Modality
from speechclip.retrieval.embed import embed_tasks, prepare_embedding
from speechclip.retrieval.search import Answer, Searcher
from speechclip.store import FeatureStore
from speechclip.store.layout import manifest_path
from speechclip.training.identity import RunInfo
from speechclip.training.progress import TrainingProgress
from speechclip.training.recipe import Recipe, load_recipe
from speechclip.training.run import load_run


def train(
    manifest: Manifest | str,
    store: FeatureStore | str,
    out: str,
    *,
    recipe: Recipe | str = "demo-parallel",
    overrides: dict[str, Any] | None = None,
    speech: str | None = None,
    image: str | None = None,
    text: str | None = None,
    version: int | str | None = None,
    workers: int = 1,
    min_workers: int | None = None,
    num_cpus: int | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> RunInfo:
    """Train a head on Ray Train from the stored features, into the folder `out`.

    `recipe` is a recipe's name, a YAML file or a `Recipe`; `overrides` sets single keys of it. `speech`, `image` and
    `text` name feature sets where the store has several. Every node of the cluster must be able to read the addresses
    of manifest, store and `out`. If `out` holds a part of the same training, it goes on from the last checkpoint. If it
    holds the finished run, nothing is trained.

    Raises `InvalidInput` where `out` holds another run or the features do not fit the recipe, `WorkLeft` where workers
    fail or the cluster has no room.
    """
    from speechclip.jobs.train import TrainRequest
    from speechclip.jobs.train import train as train_on_ray

    chosen = load_recipe(recipe, overrides or {}) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, str) and overrides:
        raise InvalidInput("overrides were given beside a Recipe", "set the keys in the recipe itself")
    opened = open_store(store)
    request = TrainRequest(
        manifest=whole_path(manifest) if isinstance(manifest, str) else _stored(manifest, opened),
        store=whole_path(opened.storage.root),
        out=whole_path(out),
        recipe=chosen,
        speech=speech,
        image=image,
        text=text,
        catalog_version=opened.version_of(version),
        workers=workers,
        min_workers=min_workers,
        num_cpus=num_cpus,
    )
    return train_on_ray(request, on_progress)


def evaluate(
    run: str | os.PathLike[str],
    manifest: Manifest | str,
    store: FeatureStore | str,
    *,
    split: str = "test",
    candidates: Literal["split", "all"] = "split",
    speech: str | None = None,
    version: int | str | None = None,
    device: str = "cpu",
) -> EvaluationReport:
    """Measure the head of a run on a split: recall beside chance and the published figures, and its keywords.

    `candidates` says whose pictures and captions may answer: those of the split, or all of the manifest. `speech`
    names another feature set of the run's encoder, for example whole utterances where the run was trained on crops.
    """
    return evaluate_run(
        load_run(os.fspath(run)),
        open_manifest(manifest),
        open_store(store).snapshot(version),
        split,
        candidates=candidates,
        speech=speech,
        device=device,
    )


def search(
    run: str | os.PathLike[str],
    store: FeatureStore | str,
    *,
    text: str | None = None,
    audio: str | os.PathLike[str] | tuple[np.ndarray, int] | None = None,
    image: str | os.PathLike[str] | None = None,
    among: Modality | None = None,
    k: int = 5,
    version: int | str | None = None,
) -> list[Answer]:
    """The `k` stored utterances, pictures or texts nearest to one question, best first.

    The question is a `text`, a recording (`audio`: an address, or samples and their rate) or a picture (`image`).
    `among` says what answers: by default pictures for a recording, else speech. For many questions open a `Searcher`
    once: it keeps the index.
    """
    if sum(question is not None for question in (text, audio, image)) != 1:
        raise InvalidInput("a search needs one question", "give one of text, audio and image")
    searcher = Searcher(open_store(store), load_run(os.fspath(run)), version)
    if text is not None:
        asked = searcher.model.embed_text(text)
    elif audio is not None:
        asked = searcher.model.embed(audio)
    else:
        assert image is not None
        asked = searcher.model.embed_image(image)
    return searcher.search(asked, among or ("image" if audio is not None else "speech"), k)


def embed(
    run: str | os.PathLike[str],
    manifest: Manifest | str,
    store: FeatureStore | str,
    *,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
) -> Summary:
    """Embed every stored utterance of the manifest with the head of a run and keep the vectors in the store.

    `search` needs them. What is embedded already is not embedded again.
    """
    trained = load_run(os.fspath(run))
    work = prepare_embedding(open_store(store), open_manifest(manifest), trained, settings.tasks)
    return featurize_work(
        work,
        embed_tasks(work, trained),
        command="embed",
        must_be_whole=False,
        group_seconds=settings.commit_seconds,
    )


def _stored(manifest: Manifest, store: FeatureStore) -> str:
    """The address of the manifest's copy in the store, which workers on other nodes can read."""
    store.add_manifest(manifest)
    return whole_path(store.storage.address(manifest_path(manifest.digest)))
