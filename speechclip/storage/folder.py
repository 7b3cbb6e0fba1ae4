"""Files in a local folder. A file appears under its name only when all of its bytes are on the disk."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISDIR

from speechclip.records import StoredFile

# The names of temporary files begin so. A killed writer leaves one behind.
INCOMING = ".incoming-"
MAX_ATTEMPTS = 10_000


class Folder:
    """The files under a local folder. Paths are relative to it."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def find(self, path: str) -> StoredFile | None:
        """The file at `path`; None if there is none, or a folder."""
        try:
            # A listing calls this for every file, and pathlib would take longer than the disk.
            found = os.stat(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if S_ISDIR(found.st_mode) else StoredFile(path=path, size=found.st_size, modified=found.st_mtime)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return (self.root / path).exists()

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of the file, or of its range [start, end). A range may reach behind the end of the file."""
        # pathlib is slow here too.
        with open(f"{self.root}/{path}", "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    def create(self, path: str, data: bytes | memoryview) -> bool:
        """Write a temporary file and link it to `path`; if there is a file already, change nothing and return False."""
        with _incoming(self.root / path, data) as temporary:
            try:
                os.link(temporary, self.root / path)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                return False
        _sync_folder((self.root / path).parent)
        return True

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a temporary file and move it to `path`; an existing file is replaced."""
        with _incoming(self.root / path, data) as temporary:
            os.replace(temporary, self.root / path)
        _sync_folder((self.root / path).parent)

    def delete(self, paths: Iterable[str], older_than: float | None = None) -> None:
        """Delete these files, or with `older_than` only those that are older than that Unix time.

        Folders that become empty are deleted too, but not the root.
        """
        parents = set()
        for path in paths:
            if older_than is not None:
                found = self.find(path)
                if found is None or found.modified >= older_than:
                    continue
            (self.root / path).unlink(missing_ok=True)
            parents.add((self.root / path).parent)
        for parent in sorted(parents, key=lambda folder: -len(folder.parts)):
            _remove_empty(parent, self.root)

    def scan(self, prefix: str) -> Iterator[StoredFile]:
        """Every file under the folder `prefix`, sorted by path, temporary files of killed writers too."""
        walked = os.walk(self.root / prefix, onerror=_raise_unless_gone)
        found = [os.path.join(folder, name) for folder, _, names in walked for name in names]
        for path in sorted(os.path.relpath(name, self.root) for name in found):
            # Another process may have deleted the file since it was listed.
            file = self.find(path)
            if file is not None:
                yield file


@contextlib.contextmanager
def _incoming(path: Path, data: bytes | memoryview) -> Iterator[str]:
    """A temporary file beside `path` with all bytes on the disk; it is deleted at the end unless it was moved."""
    descriptor, temporary = _open_temporary(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def _open_temporary(folder: Path) -> tuple[int, str]:
    for _ in range(MAX_ATTEMPTS):
        # `delete` in another process may remove the folder before there is a file in it. Then make it again.
        with contextlib.suppress(FileNotFoundError):
            _make_folder(folder)
            return tempfile.mkstemp(dir=folder, prefix=INCOMING)
    raise FileNotFoundError(errno.ENOENT, "no file can be made there", str(folder))


def _raise_unless_gone(error: OSError) -> None:
    """Raise unless the folder is gone. If a folder of tags looked empty, `gc` would delete what the tags name."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and sync each new name to the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk. A folder that was deleted meanwhile has none."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
