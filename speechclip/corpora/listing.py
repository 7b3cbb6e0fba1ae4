"""The files of a corpus, local or on S3, found by their names wherever in its folder they lie."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from speechclip.errors import InvalidInput
from speechclip.storage import Storage

SHOWN_NAMES = 10
# What macOS puts into archives beside every file.
_LITTER = ("__MACOSX",)


class Listing:
    """Every file under a folder or `s3://` address, by its name; of several the one that lies highest, then first.

    Linked folders are followed, each once. `InvalidInput` if there is no such folder or nothing in it.
    """

    def __init__(self, folder: str) -> None:
        self.storage = folder_storage(folder)
        paths = sorted(walk(self.storage), key=lambda path: (path.count("/"), path))
        if not paths:
            raise InvalidInput(f"{folder}: no such folder, or nothing in it; give the folder of the unpacked corpus")
        self._paths: dict[str, str] = {}
        for path in paths:
            self._paths.setdefault(path.rpartition("/")[2], path)
        self._tops = sorted({path.partition("/")[0] for path in paths})

    def names(self, ending: str) -> list[str]:
        """The names that end so, sorted."""
        return sorted(name for name in self._paths if name.endswith(ending))

    def find(self, name: str) -> str | None:
        """The full address of the file of that name."""
        return self.storage.address(self._paths[name]) if name in self._paths else None

    def main_folder(self, names: Iterable[str]) -> str:
        """The address of the folder that holds most of these files: where one that is missing would be."""
        parents = Counter(self._paths[name].rpartition("/")[0] for name in names)
        return self.storage.address(parents.most_common(1)[0][0])

    def describe(self) -> str:
        """What lies at the top, in a few words."""
        return show_names(self._tops)


def folder_storage(folder: str) -> Storage:
    """A corpus's folder, to read from."""
    storage = Storage(folder)
    try:
        storage.root.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{folder!r}: the folder's name is no valid Unicode; rename it") from None
    if storage.is_local and os.path.isfile(storage.root):
        raise InvalidInput(f"{folder}: is a file; unpack it and give the folder")
    return storage


def show_names(names: Sequence[str]) -> str:
    """The first ten, separated by commas, and how many more there are."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else shown


def walk(storage: Storage) -> Iterator[str]:
    """The path of every file that is not hidden; a folder that several links lead to counts once."""
    found = _walk_local(storage.root) if storage.is_local else storage.list("")
    for path in found:
        parts = path.split("/")
        if not any(part in _LITTER or part.startswith(".") for part in parts):
            yield path


def _walk_local(root: str) -> Iterator[str]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        # A link may lead to a folder above it.
        here = os.path.realpath(folder)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (name if prefix == "." else f"{prefix}/{name}" for name in names)


def _raise(error: OSError) -> None:
    """A folder that can't be listed would count as empty."""
    if not isinstance(error, FileNotFoundError):
        raise error
