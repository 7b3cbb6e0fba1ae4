"""What frames and vectors share: the index of one feature set in one snapshot, from key to catalog row."""

import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from speechclip.errors import NotStored
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage


class Features:
    """The stored assets of one feature set in one snapshot: `key in features`, `len(features)`, `for key in features`.

    Every read is verified. The object can be pickled, and then opens its own files.
    """

    def __init__(self, storage: Storage, spec: EncoderSpec, entries: pa.Table) -> None:
        self.storage, self.spec = storage, spec
        self.fingerprint = spec.fingerprint
        self._entries = entries

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.storage, self.spec, self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self._entries["asset"].to_pylist())}

    def _row(self, key: str) -> int:
        """The position of `key` in the catalog's rows. Raises `NotStored` if the snapshot does not have it."""
        try:
            return self._index[key]
        except KeyError:
            raise NotStored(
                f"{key}: not stored in {self.fingerprint}", "compute it first, or see whether it was rejected and why"
            ) from None
