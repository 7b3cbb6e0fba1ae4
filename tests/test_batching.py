import itertools

from hypothesis import given
from hypothesis import strategies as st

from speechclip.batching import batch_by_length

LENGTHS = st.lists(st.integers(1, 200), max_size=40)


@given(lengths=LENGTHS, limit=st.integers(1, 400), max_items=st.integers(1, 8) | st.none())
def test_batches_hold_every_position_once_within_the_limits(
    lengths: list[int], limit: int, max_items: int | None
) -> None:
    batches = batch_by_length(lengths, limit, max_items)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert max_items is None or len(batch) <= max_items
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= limit


@given(lengths=LENGTHS, limit=st.integers(1, 400), max_items=st.integers(1, 8) | st.none())
def test_no_batch_could_have_taken_the_next_member(lengths: list[int], limit: int, max_items: int | None) -> None:
    for batch, following in itertools.pairwise(batch_by_length(lengths, limit, max_items)):
        is_full = max_items is not None and len(batch) == max_items
        assert is_full or (len(batch) + 1) * lengths[following[0]] > limit


@given(lengths=LENGTHS)
def test_lengths_ascend_and_equal_ones_keep_their_order(lengths: list[int]) -> None:
    order = list(itertools.chain.from_iterable(batch_by_length(lengths, 300)))
    assert order == sorted(range(len(lengths)), key=lambda position: (lengths[position], position))


def test_a_member_beyond_the_limit_is_alone() -> None:
    assert batch_by_length([50, 3, 200], 100) == [[1, 0], [2]]
