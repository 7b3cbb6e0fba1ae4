"""The evaluation of heads with keywords in a real store, compared with plain loops."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from support.keyword_corpus import CLIP, KeywordCorpus, write_keyword_corpus

from speechclip.errors import InvalidInput
from speechclip.evaluation.discovery import discover
from speechclip.evaluation.evaluator import evaluate, validator
from speechclip.evaluation.keywords import gold_tokens
from speechclip.evaluation.report import EvaluationReport
from speechclip.manifest import Manifest
from speechclip.retrieval import embeddings
from speechclip.retrieval.embeddings import embed_branches, embed_speech
from speechclip.retrieval.model import Model
from speechclip.retrieval.search import Searcher
from speechclip.store import FeatureStore, Frames, Vectors
from speechclip.store.feature_sets import open_pair
from speechclip.training.run import Run
from speechclip.training.world import World


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> KeywordCorpus:
    return write_keyword_corpus(tmp_path_factory.mktemp("keyword-corpus"))


@pytest.fixture(scope="module")
def hybrid(corpus: KeywordCorpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return corpus.train(tmp_path_factory.mktemp("hybrid"), has_parallel=True)


@pytest.fixture(scope="module")
def report(corpus: KeywordCorpus, hybrid: Run) -> EvaluationReport:
    return evaluate(hybrid, corpus.manifest, corpus.store.snapshot(), "train")


def features(corpus: KeywordCorpus, run: Run) -> tuple[Frames, Vectors]:
    identity = run.info.identity
    return open_pair(corpus.store.snapshot(), identity.speech.fingerprint, identity.image.fingerprint)


def train_rows(corpus: KeywordCorpus) -> list[dict[str, str]]:
    return corpus.manifest.select(["train"]).rows()


def output_of(run: Run, frames: Frames, key: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The embeddings and the tokens of one utterance, computed alone."""
    hidden = torch.from_numpy(np.array(frames[key]))
    with torch.inference_mode():
        output = run.head(hidden[None], torch.tensor([hidden.shape[1]]))
    assert output.keywords is not None
    return output.parallel[0].numpy(), output.cascaded[0].numpy(), output.keywords.tokens[0].tolist()


def test_a_hybrid_head_is_measured_by_both_branches_and_the_parallel_one_is_the_main_one(
    corpus: KeywordCorpus, hybrid: Run, report: EvaluationReport
) -> None:
    frames, vectors = features(corpus, hybrid)
    rows = train_rows(corpus)
    images = {row["group"]: row["image_key"] for row in reversed(rows)}
    unit = {group: vectors[key].astype(np.float64) for group, key in images.items()}
    assert list(report.retrieval) == ["parallel", "cascaded"]
    assert report.main == report.retrieval["parallel"]
    for place, branch in enumerate(report.retrieval):
        ranks = []
        for row in rows:
            speech = output_of(hybrid, frames, row["speech_key"])[place].astype(np.float64)
            scores = {group: speech @ vector / np.linalg.norm(vector) for group, vector in unit.items()}
            own = scores.pop(row["group"])
            ranks.append(1 + sum(score >= own for score in scores.values()))
        found = report.retrieval[branch].from_speech
        assert (found.num_queries, found.num_candidates) == (len(rows), len(images))
        assert found.mean_rank == np.mean(ranks)
    # The validator uses the same branch.
    validate = validator(corpus.manifest, "train", frames, vectors)
    assert validate is not None
    assert validate(hybrid.head, World()) == pytest.approx(report.retrieval["parallel"].mean_recall[10])


def test_a_cascaded_head_is_judged_by_its_only_branch(corpus: KeywordCorpus, tmp_path: Path) -> None:
    run = corpus.train(tmp_path)
    found = evaluate(run, corpus.manifest, corpus.store.snapshot(), "train")
    assert list(found.retrieval) == ["cascaded"]
    assert found.text is not None
    assert found.text.branch == "cascaded"
    validate = validator(corpus.manifest, "train", *features(corpus, run))
    assert validate is not None
    assert validate(run.head, World()) == pytest.approx(found.main.mean_recall[10])


def test_every_caption_of_the_image_is_right_and_each_utterance_brings_one_candidate(
    corpus: KeywordCorpus, hybrid: Run, report: EvaluationReport
) -> None:
    assert report.text is not None
    rows = train_rows(corpus)
    texts = corpus.store.snapshot().feature_set(corpus.info("text").fingerprint)
    frames, _ = features(corpus, hybrid)
    assert len({row["text_key"] for row in rows}) < len(rows)
    speech = [output_of(hybrid, frames, row["speech_key"])[0].astype(np.float64) for row in rows]
    captions = [texts[row["text_key"]].astype(np.float64) for row in rows]
    captions = [caption / np.linalg.norm(caption) for caption in captions]
    groups = [row["group"] for row in rows]
    both = report.text.retrieval
    sides = ((both.from_speech, speech, captions), (both.to_speech, captions, speech))
    for found, queries, candidates in sides:
        ranks = []
        for query, group in zip(queries, groups, strict=True):
            scores = [np.float32(query @ candidate) for candidate in candidates]
            best = max(score for score, other in zip(scores, groups, strict=True) if other == group)
            ranks.append(1 + sum(s >= best and other != group for s, other in zip(scores, groups, strict=True)))
        assert (found.num_queries, found.num_candidates) == (len(rows), len(rows))
        assert found.mean_rank == np.mean(ranks)
        assert found.chance[1] == pytest.approx(np.mean([groups.count(group) / len(rows) for group in groups]))


def test_keywords_of_a_split_are_those_of_its_utterances_one_by_one(
    corpus: KeywordCorpus, hybrid: Run, report: EvaluationReport
) -> None:
    found = report.keywords
    assert found is not None
    rows, slots = train_rows(corpus), 4
    frames, _ = features(corpus, hybrid)
    matrix = hybrid.head.tower.embeddings.double()  # type: ignore[union-attr]
    chosen, hits = [], np.zeros((len(rows), slots))
    for number, row in enumerate(rows):
        tokens = output_of(hybrid, frames, row["speech_key"])[2]
        chosen += tokens
        gold = gold_tokens(row["text"])
        assert gold is not None
        for slot, token in enumerate(tokens):
            cosines = torch.cosine_similarity(matrix, matrix[token][None])
            near = {corpus.vocabulary.ids[place] for place in cosines.argsort(descending=True)[:5].tolist()}
            hits[number, slot] = bool(near & gold.plain)
    assert found.num_distinct == len(set(chosen))
    assert found.num_per_slot == (len(rows),) * slots
    rate = next(rate for rate in found.hit_rates if (rate.neighbours, rate.gold) == ("token", "plain"))
    assert rate.per_slot == pytest.approx(hits.mean(axis=0))
    assert rate.average == pytest.approx(hits.mean())


def test_slots_of_a_firing_head_count_only_where_they_are_filled(corpus: KeywordCorpus, tmp_path: Path) -> None:
    run = corpus.train(tmp_path, segmentation="cif", max_keywords=60)
    found = evaluate(run, corpus.manifest, corpus.store.snapshot(), "train").keywords
    assert found is not None
    frames, _ = features(corpus, run)
    counts = []
    for row in train_rows(corpus):
        hidden = torch.from_numpy(np.array(frames[row["speech_key"]]))
        counts.append(int(run.head(hidden[None], torch.tensor([hidden.shape[1]])).keywords.counts[0]))
    assert len(set(counts)) > 1
    assert found.num_per_slot == tuple(sum(count > slot for count in counts) for slot in range(max(counts)))
    assert all(len(rate.per_slot) == max(counts) for rate in found.hit_rates)


def test_each_utterance_is_read_once_for_all_figures(
    corpus: KeywordCorpus, hybrid: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(Frames, "__getitem__", _counting(read))
    found = evaluate(hybrid, corpus.manifest, corpus.store.snapshot(), "train")
    assert found.text is not None
    assert found.keywords is not None
    assert sorted(read) == sorted(row["speech_key"] for row in train_rows(corpus))


def _counting(read: list[str]):  # type: ignore[no-untyped-def]
    original = Frames.__getitem__

    def get(self: Frames, key: str) -> np.ndarray:
        read.append(key)
        return original(self, key)

    return get


def test_the_size_of_a_batch_does_not_change_the_figures(
    corpus: KeywordCorpus, hybrid: Run, report: EvaluationReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, _ = features(corpus, hybrid)
    keys = [row["speech_key"] for row in train_rows(corpus)]
    sizes: list[int] = []
    together = embed_branches(hybrid.head, frames, keys, lambda rows, output: sizes.append(len(rows)))
    assert sizes == [len(keys)]
    np.testing.assert_array_equal(embed_speech(hybrid.head, frames, keys), together["parallel"])
    monkeypatch.setattr(embeddings, "FRAMES_PER_BATCH", 1)
    apart = embed_branches(hybrid.head, frames, keys, lambda rows, output: sizes.append(len(rows)))
    assert sizes[1:] == [1] * len(keys)
    for branch, found in together.items():
        np.testing.assert_allclose(apart[branch], found, atol=1e-5)
    again = evaluate(hybrid, corpus.manifest, corpus.store.snapshot(), "train").keywords
    assert again is not None
    assert report.keywords is not None
    assert again.hit_rates == report.keywords.hit_rates


def test_without_stored_captions_the_report_says_how_to_get_them(corpus: KeywordCorpus, hybrid: Run) -> None:
    rows = [row | {"text_key": "0" * 64} for row in corpus.manifest.rows()]
    found = evaluate(hybrid, Manifest.from_rows(rows), corpus.store.snapshot(), "train")
    assert found.text is None
    assert any(f"`speechclip featurize --text {CLIP}`" in note for note in found.notes)
    assert f"featurize --text {CLIP}" in found.to_text()
    bare = [row | {"text_key": None, "text": None} for row in corpus.manifest.rows()]
    found = evaluate(hybrid, Manifest.from_rows(bare), corpus.store.snapshot(), "train")
    assert found.text is None
    assert found.keywords is not None
    assert (found.keywords.num_captioned, found.keywords.hit_rates) == (0, ())
    assert "the manifest has none" in found.notes[0]
    found.to_text()


def test_an_utterance_without_stored_captions_is_no_query(corpus: KeywordCorpus, hybrid: Run) -> None:
    rows = train_rows(corpus)
    lost = rows[0]["group"]
    changed = [row | ({"text_key": None} if row["group"] == lost else {}) for row in corpus.manifest.rows()]
    found = evaluate(hybrid, Manifest.from_rows(changed), corpus.store.snapshot(), "train")
    assert found.text is not None
    num_lost = sum(row["group"] == lost for row in rows)
    assert found.text.num_missing == num_lost
    assert found.text.retrieval.from_speech.num_queries == len(rows) - num_lost


def test_a_report_is_equal_after_a_round_trip_through_json(report: EvaluationReport) -> None:
    assert msgspec.json.decode(msgspec.json.encode(report), type=EvaluationReport) == report


def test_discovery_names_the_tokens_and_their_neighbours(corpus: KeywordCorpus, hybrid: Run) -> None:
    frames, _ = features(corpus, hybrid)
    key = corpus.manifest.rows()[0]["speech_key"]
    found = discover(hybrid, np.array(frames[key]))
    tokens = output_of(hybrid, frames, key)[2]
    assert [keyword.slot for keyword in found] == [1, 2, 3, 4]
    assert [keyword.chosen.id for keyword in found] == [corpus.vocabulary.ids[token] for token in tokens]
    for keyword in found:
        assert keyword.near_chosen[0].token == keyword.chosen.token
        assert keyword.near_chosen[0].score == 1
        scores = [near.score for near in keyword.near_query]
        assert scores == sorted(scores, reverse=True)
        # Excluded tokens may be nearer to the query than the one that was chosen.
        allowed = [near for near in keyword.near_query if near.id not in (0, 49406, 49407)]
        assert not allowed or allowed[0].score == keyword.chosen.score


def test_a_stored_utterance_and_its_recording_have_the_same_keywords(corpus: KeywordCorpus, hybrid: Run) -> None:
    searcher = Searcher(corpus.store, hybrid)
    row = corpus.manifest.rows()[3]
    stored = searcher.stored_frames(row["utterance"])
    assert discover(hybrid, stored) == discover(hybrid, Model(hybrid).encode_audio(row["audio_uri"]).astype(np.float16))
    with pytest.raises(InvalidInput, match="no manifest names it"):
        searcher.stored_frames("nobody-said-this")


def test_keywords_of_a_head_without_keywords_are_an_error(corpus: KeywordCorpus, hybrid: Run) -> None:
    import dataclasses

    with pytest.raises(InvalidInput, match="chooses no keywords"):
        discover(dataclasses.replace(hybrid, vocabulary=None), np.zeros((3, 5, 16), np.float32))


def test_a_store_without_texts_has_no_text_set(tmp_path: Path, corpus: KeywordCorpus, hybrid: Run) -> None:
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    assert embeddings.find_texts(hybrid, store.snapshot()) is None
    assert embeddings.find_texts(hybrid, corpus.store.snapshot()) == corpus.info("text").fingerprint
