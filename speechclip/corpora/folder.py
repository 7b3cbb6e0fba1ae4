"""The files of a corpus in a local folder or on S3, found by name wherever they are below it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from speechclip.errors import InvalidInput
from speechclip.storage import Storage

SHOWN_NAMES = 10
# The folder that macOS puts into an archive beside the files.
_LITTER = ("__MACOSX",)


class CorpusFolder:
    """Every file below a folder or `s3://` address, by its name.

    If two files have the same name, the one nearest to the top counts, then the first by path. Links to folders are
    followed. `InvalidInput` if there is no such folder or no file in it.
    """

    def __init__(self, folder: str) -> None:
        self.storage = folder_storage(folder)
        paths = sorted(walk(self.storage), key=lambda path: (path.count("/"), path))
        if not paths:
            raise InvalidInput(f"{folder}: no such folder, or no file in it", "give the folder of the unpacked corpus")
        self._paths: dict[str, str] = {}
        for path in paths:
            self._paths.setdefault(path.rpartition("/")[2], path)
        self._tops = sorted({path.partition("/")[0] for path in paths})

    def names(self, ending: str) -> list[str]:
        """The names of the files that end like this, sorted."""
        return sorted(name for name in self._paths if name.endswith(ending))

    def find(self, name: str) -> str | None:
        """The full address of the file of this name, None if there is none."""
        return self.storage.address(self._paths[name]) if name in self._paths else None

    def main_folder(self, names: Iterable[str]) -> str:
        """The address of the folder that holds most of these files, so that a missing one is expected there too."""
        parents = Counter(self._paths[name].rpartition("/")[0] for name in names)
        return self.storage.address(parents.most_common(1)[0][0])

    def describe(self) -> str:
        """The names of what is at the top, the first ten."""
        return show_names(self._tops)


def folder_storage(folder: str) -> Storage:
    """The storage of a corpus's folder, to read from; `InvalidInput` if it is a file."""
    storage = Storage(folder)
    try:
        storage.root.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{folder!r}: the folder's name is not valid Unicode", "rename it") from None
    if storage.is_local and os.path.isfile(storage.root):
        raise InvalidInput(f"{folder}: is a file, expected a folder", "unpack it and give the folder")
    return storage


def show_names(names: Sequence[str]) -> str:
    """The first ten names, separated by commas, and how many more there are."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else shown


def walk(storage: Storage) -> Iterator[str]:
    """The path of every file that is not hidden. A folder to which several links lead is walked once."""
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
    """Raise, because os.walk would take a folder that it can't list for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error
