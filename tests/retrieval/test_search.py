"""Stored embeddings and searches, by a head that was trained on toy features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small_runs import train_small
from support.stores import encode_all

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.errors import InvalidInput
from speechclip.featurization.driver import GroupCommitter, Summary, commit_receipts
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import MODALITIES, Modality
from speechclip.retrieval.embed import embed_tasks, embedding_spec, prepare_embedding
from speechclip.retrieval.embeddings import embed_speech
from speechclip.retrieval.index import ExactIndex, unit
from speechclip.retrieval.search import Searcher
from speechclip.storage.folder import Folder
from speechclip.store import FeatureStore
from speechclip.training.run import Run

SIZES = TaskSizes(chunk_rows=4)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_table(str(make_synthetic(tmp_path_factory.mktemp("corpus"), num_concepts=6, num_voices=3)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> FeatureStore:
    store = FeatureStore(str(tmp_path_factory.mktemp("searcher") / "store"))
    requests = [EncoderRequest(encoder_name="toy", modality=modality) for modality in MODALITIES]
    encode_all(store, manifest, requests, SIZES)
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store: FeatureStore, manifest: Manifest) -> Run:
    return train_small(manifest, store, str(tmp_path_factory.mktemp("run")))


def embed(store: FeatureStore, manifest: Manifest, trained: Run) -> Summary:
    work = prepare_embedding(store, manifest, trained, SIZES)
    committer = GroupCommitter(work)
    commit_receipts(embed_tasks(work, trained), committer)
    return committer.summary()


def test_embeddings_are_stored_once_and_equal_the_heads_own(
    store: FeatureStore, manifest: Manifest, trained: Run
) -> None:
    first = embed(store, manifest, trained)
    assert (first.encoded, first.missing, first.tasks_done) == (18, 0, 5)
    assert embed(store, manifest, trained).encoded == 0
    snapshot = store.snapshot()
    spec = embedding_spec(trained.info)
    assert "untrained" in spec.fingerprint
    frames = snapshot.feature_set(trained.info.identity.speech.fingerprint)
    keys = list(frames)
    np.testing.assert_allclose(
        snapshot.feature_set(spec.fingerprint).read(keys), embed_speech(trained.head, frames, keys), atol=1e-6
    )


def test_embeddings_are_computed_on_one_thread_in_every_process(
    store: FeatureStore, manifest: Manifest, trained: Run
) -> None:
    seen: list[int] = []
    hook = trained.head.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        store.drop({embedding_spec(trained.info).fingerprint: None})
        assert embed(store, manifest, trained).encoded == 18
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        hook.remove()
    assert set(seen) == {1}


@pytest.mark.parametrize(("question", "among"), [("audio", "speech"), ("image", "image"), ("text", "text")])
def test_a_stored_asset_finds_itself(
    store: FeatureStore, manifest: Manifest, trained: Run, question: str, among: Modality
) -> None:
    embed(store, manifest, trained)
    searcher = Searcher(store, trained)
    row = manifest.rows()[4]
    asked = row["text"] if question == "text" else row[f"{question}_uri"]
    embed_question = searcher.model.embed if question == "audio" else getattr(searcher.model, f"embed_{question}")
    best = searcher.search(embed_question(asked), among, 3)[0]
    assert best.key == row[f"{among}_key"]
    assert best.score == pytest.approx(1, abs=1e-5)
    assert best.text == row["text"]


@pytest.mark.parametrize("among", ["speech", "image", "text"])
def test_a_second_search_reads_nothing_from_the_store(
    store: FeatureStore, manifest: Manifest, trained: Run, among: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(store, manifest, trained)
    searcher, reads = Searcher(store, trained), count_reads(monkeypatch)
    query = np.random.default_rng(3).standard_normal(searcher.identity.head.embedding_width)
    first = searcher.search(query, among, 3)
    assert any("/manifests" in path for path in reads)
    assert any("/vectors/" in path for path in reads)
    reads.clear()
    assert searcher.search(query, among, 3) == first
    assert searcher.search(-query, among, 3) != first
    assert reads == []


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the path of each file read and each folder listed from now on."""
    reads: list[str] = []
    for name in ("read", "scan"):
        monkeypatch.setattr(Folder, name, _recording(getattr(Folder, name), reads))
    return reads


def _recording(original: Callable[..., Any], reads: list[str]) -> Callable[..., Any]:
    def record(self: Folder, path: str, *rest: Any) -> Any:
        reads.append(f"{self.root}/{path}")
        return original(self, path, *rest)

    return record


def test_a_search_in_speech_without_embeddings_is_an_error(tmp_path: Path, store: FeatureStore, trained: Run) -> None:
    before = Searcher(store, trained, version=trained.info.identity.catalog_version)
    with pytest.raises(InvalidInput, match="speechclip embed"):
        before.search(np.ones(16, np.float32), "speech", 1)


@given(num_rows=st.integers(1, 50), k=st.integers(0, 60), seed=st.integers(0, 9))
def test_exact_search_finds_the_best_in_order(num_rows: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, query = generator.standard_normal((num_rows, 8)), generator.standard_normal(8)
    found = ExactIndex([str(row) for row in range(num_rows)], vectors).search(query, k)
    scores = unit(vectors) @ unit(query[None])[0]
    assert [neighbour.key for neighbour in found] == [str(row) for row in np.argsort(-scores)[:k]]


def test_keys_and_queries_that_do_not_fit_the_vectors_are_errors() -> None:
    with pytest.raises(InvalidInput, match="2 keys for 3 vectors"):
        ExactIndex(["a", "b"], np.ones((3, 4)))
    with pytest.raises(InvalidInput, match="shape"):
        ExactIndex(["a"], np.ones((1, 4))).search(np.ones(5), 1)
