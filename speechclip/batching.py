"""Batches of like length, so that padding each one to its longest member costs little."""

from collections.abc import Sequence


def batch_by_length(lengths: Sequence[int], limit: int, max_items: int | None = None) -> list[list[int]]:
    """The positions in `lengths`, grouped into batches by ascending length.

    A batch is padded to its longest member. Its padded length in total, members times the longest, is at most `limit`.
    A member that is longer than `limit` makes a batch of its own. `max_items` also limits the members of a batch.
    Equal lengths keep their order, so the batches depend on `lengths` and the limits alone.

        >>> batch_by_length([5, 2, 4], limit=8)
        [[1], [2], [0]]
        >>> batch_by_length([5, 2, 4], limit=10)
        [[1, 2], [0]]
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = bool(batches) and max_items is not None and len(batches[-1]) >= max_items
        if not batches or is_full or (len(batches[-1]) + 1) * lengths[position] > limit:
            batches.append([])
        batches[-1].append(position)
    return batches
