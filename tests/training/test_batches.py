from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paired_corpus import key, write_corpus

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.training.batches import Order, Rows, load_vectors, stored_rows


def rows(count: int, prefix: str = "u") -> Rows:
    names = [f"{prefix}{n}" for n in range(count)]
    return Rows(names, names, names, np.arange(count), 0)


@given(count=st.integers(2, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_an_epoch_takes_no_row_twice_and_leaves_out_less_than_a_batch(count, batch_size, seed):
    order = Order(rows(count), batch_size, seed)
    for epoch in range(2):
        first = epoch * order.batches_per_epoch
        taken = np.concatenate([order.batch(step) for step in range(first, first + order.batches_per_epoch)])
        assert len(set(taken)) == len(taken) == order.batches_per_epoch * order.rows_per_batch
        assert count - len(taken) < order.rows_per_batch


def test_a_batch_depends_on_seed_and_step_only():
    order = Order(rows(50), 8, seed=3)
    later = [order.batch(step).tolist() for step in reversed(range(20))]
    again = Order(rows(50), 8, seed=3)
    assert later == [again.batch(step).tolist() for step in reversed(range(20))]
    assert order.batch(0).tolist() != Order(rows(50), 8, seed=4).batch(0).tolist()
    assert order.batch(0).tolist() != order.batch(order.batches_per_epoch).tolist()
    # These numbers must never change: a run that is continued years later must see the same batches.
    assert order.batch(7).tolist() == FROZEN_BATCH


FROZEN_BATCH: list[int] = [3, 19, 5, 36, 38, 49, 21, 48]


def test_the_digest_differs_after_each_step_and_for_each_order():
    order = Order(rows(50), 8, seed=3)
    digest = ""
    for step in range(9):
        digest = order.extend_digest(digest, step)
        assert digest == order.digest(step + 1)
    assert digest != Order(rows(50), 8, seed=4).digest(9)
    assert digest != Order(rows(50), 7, seed=3).digest(9)
    assert digest != Order(rows(50, "v"), 8, seed=3).digest(9)


def test_fewer_rows_than_a_batch_make_one_batch_and_a_warning(caplog):
    order = Order(rows(5), 256, seed=0)
    assert sorted(order.batch(3)) == [0, 1, 2, 3, 4]
    assert "only 5 rows" in caplog.text


def test_too_few_rows_are_an_error():
    with pytest.raises(InvalidInput, match="1 rows to train on"):
        Order(rows(1), 4, 0)


def test_draws_differ_by_row_step_and_purpose_and_hold_32_bits():
    order = Order(rows(500), 8, seed=3)
    everything = np.arange(500)
    draws = order.draws(1, everything, "crop")
    assert draws.min() >= 0
    assert draws.max() < 2**32
    assert len(set(draws)) > 498
    assert abs(draws.mean() / 2**32 - 0.5) < 0.05
    np.testing.assert_array_equal(order.draws(1, everything[7:9], "crop"), draws[7:9])
    for other in (order.draws(2, everything, "crop"), order.draws(1, everything, "dropout")):
        assert (other != draws).mean() > 0.99


def test_rows_without_a_stored_feature_are_counted_and_left_out(tmp_path: Path):
    corpus = write_corpus(str(tmp_path / "store"), unstored=("u0-1", "i3"))
    frames, vectors = corpus.features()
    found = stored_rows(corpus.manifest, "train", frames, vectors)
    assert (len(found), found.num_missing) == (33, 3)
    assert not {"u0-1", "u3-0", "u3-1"} & set(found.utterances)
    images, places = load_vectors(found.image_keys, vectors)
    assert len(images) == 17
    np.testing.assert_array_equal(images[places[0]], vectors[key("i0")])
    assert found.groups[1] == found.groups[2]


def test_rows_of_one_group_have_its_number_even_if_their_images_differ(tmp_path: Path):
    corpus = write_corpus(str(tmp_path / "store"), num_images=8)
    table = [row | {"group": "same"} if row["utterance"] in ("u1-0", "u2-0") else row for row in corpus.manifest.rows()]
    frames, vectors = corpus.features()
    found = stored_rows(Manifest.from_rows(table), "train", frames, vectors)
    codes = dict(zip(found.utterances, found.groups, strict=True))
    assert codes["u1-0"] == codes["u2-0"] != codes["u1-1"]
