from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.paired_corpus import Corpus, key, write_corpus

from speechclip.errors import Damaged, InvalidInput
from speechclip.store import FeatureStore
from speechclip.training.recipe import Recipe
from speechclip.training.world import World

RECIPE = Recipe(name="small", batch_size=7, window="sliced", max_frames=8, seed=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("loader") / "store"))


def test_a_batch_holds_the_stored_frames_of_its_rows_padded_by_zeros(corpus: Corpus):
    loader = corpus.loader(RECIPE, read_threads=2)
    for batch in loader.batches(0, 3):
        for place, row in enumerate(loader.order.batch(batch.number)):
            whole = loader.frames[loader.order.rows.speech_keys[row]]
            length = int(batch.lengths[place])
            assert length == min(8, whole.shape[1])
            part = batch.frames[place, :, :length].numpy()
            starts = [
                start
                for start in range(whole.shape[1] - length + 1)
                if (whole[:, start : start + length] == part).all()
            ]
            assert len(starts) == 1
            assert not batch.frames[place, :, length:].any()
        assert batch.frames.dtype == torch.float16
        assert batch.num_bytes == int(batch.lengths.sum()) * 3 * 16 * 2


def test_the_parts_of_all_workers_are_the_batch_of_one_worker(corpus: Corpus):
    whole = list(corpus.loader(RECIPE).batches(2, 5))
    parts = [list(corpus.loader(RECIPE, World(rank, 3)).batches(2, 5)) for rank in range(3)]
    for together, *pieces in zip(whole, *parts, strict=True):
        assert [len(piece.lengths) for piece in pieces] == [2, 2, 3]
        assert torch.equal(torch.cat([piece.lengths for piece in pieces]), together.lengths)
        assert torch.equal(torch.cat([piece.seeds for piece in pieces]), together.seeds)
        for piece in pieces:
            assert torch.equal(piece.targets["image"], together.targets["image"])
            assert torch.equal(piece.groups, together.groups)
        for place, row in enumerate(torch.cat([piece.frames.flatten(1).float().sum(1) for piece in pieces])):
            assert row == pytest.approx(together.frames[place].float().sum().item(), abs=1e-2)


def test_sliced_windows_change_at_each_step_and_full_reads_everything(corpus: Corpus):
    loader = corpus.loader(RECIPE)
    name = max(loader.order.rows.speech_keys, key=loader.frames.num_frames)
    row = loader.order.rows.speech_keys.index(name)
    starts = {loader._span(name, int(loader.order.draws(step, np.array([row]), "crop")[0]))[0] for step in range(90)}
    assert starts == set(range(loader.frames.num_frames(name) - 8 + 1))
    uncropped = corpus.loader(Recipe(name="small", batch_size=7, window="full", max_frames=8))
    assert max(int(batch.lengths.max()) for batch in uncropped.batches(0, 5)) > 8


@pytest.mark.parametrize(
    ("changes", "workers", "least"),
    [
        ({"batch_size": 3}, 4, 1),
        ({"head": "cascaded", "batch_size": 7}, 4, 2),
        ({"head": "cascaded", "batch_size": 3, "norm_scope": "synchronised"}, 4, 1),
    ],
)
def test_too_many_workers_for_a_batch_are_an_error(corpus: Corpus, changes: Any, workers: int, least: int):
    recipe = Recipe(name="wide", **changes)
    sentence = f"batches of {recipe.batch_size} rows are too small for 4 workers, each of which needs {least}"
    with pytest.raises(InvalidInput, match=sentence):
        corpus.loader(recipe, World(0, workers))
    enough = msgspec.structs.replace(recipe, batch_size=least * workers)
    assert corpus.loader(enough, World(0, workers)).order.rows_per_batch == least * workers


def test_a_damaged_shard_is_an_error_of_the_batch_that_reads_it(tmp_path: Path):
    corpus = write_corpus(str(tmp_path / "store"), num_images=8)
    snapshot = FeatureStore(corpus.store_uri).snapshot()
    place = snapshot.feature_set(snapshot.feature_sets()[1].fingerprint).locate(key("u0-0"))
    shard = Path(corpus.store_uri) / place.shard
    data = bytearray(shard.read_bytes())
    data[place.offset] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Damaged, match="layer 0"):
        list(corpus.loader(Recipe(name="small", batch_size=12, window="full")).batches(0, 4))


def test_a_reader_that_stops_early_stops_the_reading_thread(corpus: Corpus):
    batches = corpus.loader(RECIPE).batches(0, 10_000_000)
    assert next(batches).number == 0
    batches.close()  # type: ignore[attr-defined]
