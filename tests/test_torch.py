"""`speechclip.torch`: stored frames as a PyTorch dataset, in one process, in workers and over ranks."""

import pickle

import numpy as np
import pytest
import torch
from support.stores import SPEECH, fill, synthetic
from torch.utils.data import DataLoader

from speechclip.errors import InvalidInput
from speechclip.store import FeatureStore
from speechclip.torch import FrameDataset, collate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return fill(str(tmp_path_factory.mktemp("torch") / "store"))


def test_an_item_is_what_the_store_holds(store: FeatureStore) -> None:
    data, frames = (
        FrameDataset(synthetic(), store, layers=[2, 0], columns=["speaker"]),
        store.snapshot().feature_set(SPEECH),
    )
    assert len(data) == len(synthetic())
    for number, row in enumerate(synthetic().rows()):
        item = data[number]
        assert (item["utterance"], item["speaker"]) == (row["utterance"], row["speaker"])
        assert np.array_equal(item["frames"], frames[row["speech_key"]][[2, 0]])
        assert item["frames"].dtype == torch.float32
        assert len(item["times"]) == item["frames"].shape[1]


def test_mean_pooling_is_the_mean_over_time(store: FeatureStore) -> None:
    whole, pooled = FrameDataset(synthetic(), store), FrameDataset(synthetic(), store, pool="mean")
    assert torch.allclose(pooled[3]["frames"], whole[3]["frames"].mean(dim=1), atol=1e-6)


def test_a_window_in_seconds_holds_the_frames_that_start_in_it(store: FeatureStore) -> None:
    whole, cut = FrameDataset(synthetic(), store), FrameDataset(synthetic(), store, window=(0.1, 0.3))
    times = whole[0]["times"][:, 0]
    chosen = (times >= 0.1) & (times < 0.3)
    assert chosen.sum() == 10
    assert torch.equal(cut[0]["frames"], whole[0]["frames"][:, chosen])
    assert torch.equal(cut[0]["times"], whole[0]["times"][chosen])


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_share_every_epoch_without_overlap(store: FeatureStore, world_size: int) -> None:
    for epoch in range(2):
        seen = []
        for rank in range(world_size):
            data = FrameDataset(synthetic(), store, shuffle=True, seed=7, rank=rank, world_size=world_size)
            data.set_epoch(epoch)
            seen += [data[number]["utterance"] for number in range(len(data))]
        assert sorted(seen) == sorted(row["utterance"] for row in synthetic().rows())


def test_the_order_follows_from_seed_and_epoch_alone(store: FeatureStore) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        data = FrameDataset(synthetic(), store, shuffle=True, seed=seed)
        data.set_epoch(epoch)
        return [data[number]["utterance"] for number in range(len(data))]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_worker_processes_give_the_same_batches(store: FeatureStore) -> None:
    data = FrameDataset(synthetic(), store, columns=["speaker"], layers=[1])
    alone = list(DataLoader(data, batch_size=4, collate_fn=collate))
    # Spawned workers get the dataset by pickle.
    beside = list(DataLoader(data, batch_size=4, collate_fn=collate, num_workers=2, multiprocessing_context="spawn"))
    assert [batch["speaker"] for batch in alone] == [batch["speaker"] for batch in beside]
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one["frames"], other["frames"])
        assert torch.equal(one["lengths"], other["lengths"])


def test_a_batch_is_padded_by_zeros_to_its_longest(store: FeatureStore) -> None:
    items = [FrameDataset(synthetic(), store, columns=["num_samples", "language"])[number] for number in range(5)]
    batch = collate(items)
    assert batch["frames"].shape[2] == max(batch["lengths"])
    for item, block, length in zip(items, batch["frames"], batch["lengths"], strict=True):
        assert torch.equal(block[:, :length], item["frames"])
        assert not block[:, length:].any()
    assert batch["num_samples"].dtype == torch.int64
    assert isinstance(batch["language"], list)


def test_a_training_goes_on_with_the_items_that_it_has_not_used(store: FeatureStore) -> None:
    def open_data() -> FrameDataset:
        return FrameDataset(synthetic(), store, shuffle=True, seed=3)

    data = open_data()
    data.set_epoch(4)
    whole = [data[number]["utterance"] for number in range(len(data))]
    again = open_data()
    again.load_state_dict(data.state_dict(num_seen=5))
    assert [again[number]["utterance"] for number in range(len(again))] == whole[5:]
    later = open_data()
    later.load_state_dict(again.state_dict(num_seen=2))
    assert [later[number]["utterance"] for number in range(len(later))] == whole[7:]
    later.set_epoch(5)
    assert len(later) == len(whole)


def test_a_state_of_other_data_is_refused(store: FeatureStore) -> None:
    state = FrameDataset(synthetic(), store, layers=[0]).state_dict()
    with pytest.raises(InvalidInput, match="other data"):
        FrameDataset(synthetic(), store, layers=[1]).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["speakr"]}, "no column 'speakr'"),
        ({"layers": [99]}, "not 99"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"window": (2.0, 1.0)}, "below the end"),
        ({"split": "nowhere"}, "no split 'nowhere'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(store: FeatureStore, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        FrameDataset(synthetic(), store, **arguments)[0]  # type: ignore[arg-type]


def test_a_copy_by_pickle_is_the_same_data(store: FeatureStore) -> None:
    data = FrameDataset(synthetic(), store, shuffle=True)
    again = pickle.loads(pickle.dumps(data))
    assert again.digest == data.digest
    assert torch.equal(again[2]["frames"], data[2]["frames"])
