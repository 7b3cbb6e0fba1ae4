from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from support.paired_corpus import IMAGE, SPEECH, Corpus, key, write_corpus

from speechclip.errors import InvalidInput, NotStored
from speechclip.evaluation.evaluator import (
    EvaluationReport,
    evaluate,
    gather_pool,
    validator,
)
from speechclip.manifest import Manifest
from speechclip.retrieval.embeddings import embed_images, embed_speech
from speechclip.store import FeatureStore
from speechclip.training.recipe import Recipe
from speechclip.training.run import Run, load_run
from speechclip.training.world import World

RECIPE = Recipe(
    name="small", batch_size=18, max_steps=80, warmup_steps=5, learning_rate=2e-3, num_heads=4, feed_forward_factor=2,
    image_projection=True, embedding_width=8, window="full", normalize_states="s3prl", dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("evaluation") / "store"), unstored=("u20-0", "i21"))


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    uri = str(tmp_path_factory.mktemp("evaluation") / "run")
    corpus.trainer(RECIPE, uri).fit()
    return load_run(uri)


def report(run: Run, corpus: Corpus, split: str = "dev", **options: str) -> EvaluationReport:
    snapshot = FeatureStore(corpus.store_uri).snapshot()
    return evaluate(run, corpus.manifest, snapshot, split, **options)  # type: ignore[arg-type]


def test_a_trained_head_has_a_recall_far_above_chance_on_its_training_split(run: Run, corpus: Corpus):
    found = report(run, corpus, "train")
    assert (found.num_utterances, found.num_missing) == (36, 0)
    for direction in (found.main.from_speech, found.main.to_speech):
        assert direction.recall[1] > 5 * direction.chance[1]
    assert found.main.from_speech.chance[1] == pytest.approx(1 / 18)
    assert found.main.to_speech.chance[1] == pytest.approx(2 / 36)
    assert found.main.mean_recall[5] == (found.main.from_speech.recall[5] + found.main.to_speech.recall[5]) / 2
    assert list(found.retrieval) == ["parallel"]


def test_missing_utterances_are_counted_and_their_images_still_compete(run: Run, corpus: Corpus):
    found = report(run, corpus)
    # u20-0 has no frames. i21 has no vector, so both of its captions are missing.
    assert (found.num_utterances, found.num_missing) == (9, 3)
    assert found.main.from_speech.num_candidates == 5
    assert (found.main.to_speech.num_queries, found.main.to_speech.num_candidates) == (5, 9)


def test_all_images_of_the_manifest_may_be_candidates(run: Run, corpus: Corpus):
    found = report(run, corpus, candidates="all")
    assert (found.main.from_speech.num_queries, found.main.from_speech.num_candidates) == (9, 23)
    assert found.main.from_speech.chance[1] == pytest.approx(1 / 23)
    # Only images with speech in the split are queries.
    assert (found.main.to_speech.num_queries, found.main.to_speech.num_candidates) == (5, 9)


def test_a_group_counts_once_among_the_candidates(corpus: Corpus):
    rows = [
        row | {"group": "same"} if row["image_key"] in (key("i18"), key("i19")) else row
        for row in corpus.manifest.rows()
    ]
    pool = gather_pool(Manifest.from_rows(rows), "dev", *corpus.features())
    assert len(pool.image_keys) == 4
    assert key("i18") in pool.image_keys
    assert key("i19") not in pool.image_keys


def test_validation_gives_the_figure_of_the_report(run: Run, corpus: Corpus):
    found = report(run, corpus)
    validate = validator(corpus.manifest, "dev", *corpus.features())
    assert validate is not None
    assert validate(run.head, World()) == pytest.approx(found.main.mean_recall[10])
    assert validator(corpus.manifest, "no-such-split", *corpus.features()) is None


def test_embeddings_are_in_the_order_of_their_keys_for_every_batch_size(
    run: Run, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    frames, vectors = corpus.features()
    keys = [key("u3-1"), key("u0-0"), key("u7-0"), key("u0-0")]
    together = embed_speech(run.head, frames, keys)
    assert together.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together[1], together[3], atol=1e-6)
    monkeypatch.setattr("speechclip.retrieval.embeddings.FRAMES_PER_BATCH", 1)
    np.testing.assert_allclose(embed_speech(run.head, frames, keys), together, atol=1e-6)
    assert embed_speech(run.head, frames, []).shape == (0, 8)
    images = embed_images(run.head, vectors, [key("i4")])
    expected = run.head.embed_images(torch.tensor(vectors[key("i4")])[None]).detach().numpy()
    np.testing.assert_array_equal(images, expected)


def test_the_table_says_untrained_and_shows_chance(run: Run, corpus: Corpus):
    found = report(run, corpus)
    text = found.to_text()
    assert "UNTRAINED" in text
    assert SPEECH.fingerprint in text
    assert IMAGE.fingerprint not in text
    assert f"{100 * found.main.from_speech.chance[1]:.2f}" in text
    assert "9 utterances (3 missing)" in text
    trained = msgspec.structs.replace(found, untrained=())
    assert "UNTRAINED" not in trained.to_text()


def test_a_report_is_equal_after_a_round_trip_through_json(run: Run, corpus: Corpus):
    found = report(run, corpus)
    assert msgspec.json.decode(msgspec.json.encode(found), type=EvaluationReport) == found


def test_a_split_or_store_that_can_not_be_evaluated_is_an_error(run: Run, corpus: Corpus, tmp_path: Path):
    with pytest.raises(InvalidInput, match="no split 'test'"):
        report(run, corpus, "test")
    rows = [row for row in corpus.manifest.rows() if row["utterance"] == "u21-0"]
    with pytest.raises(InvalidInput, match="none of its 1 utterances"):
        evaluate(run, Manifest.from_rows(rows), FeatureStore(corpus.store_uri).snapshot(), "dev")
    store = FeatureStore(str(tmp_path / "empty"))
    store.create()
    with pytest.raises(NotStored):
        evaluate(run, corpus.manifest, store.snapshot(), "dev")
