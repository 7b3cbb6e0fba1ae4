"""The metrics of a run, one line for each step in `metrics.jsonl`, and as event files for TensorBoard.

docs/training.md lists the columns.
"""

import json
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from speechclip.storage import Storage

LINES, EVENTS = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """Writes the metrics of a run. For a run at `s3://` they are written to a temporary folder and uploaded by `sync`.

    When it is opened, it deletes the lines of steps after `first_step`: an interrupted run wrote them after its last
    checkpoint, and this run writes them again.
    """

    def __init__(self, storage: Storage, first_step: int) -> None:
        self.storage = storage
        self.folder = Path(storage.root if storage.is_local else tempfile.mkdtemp(prefix="sc-metrics-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep_until(first_step)
        self._lines = (self.folder / LINES).open("a")
        # The name of an event file contains the second. The suffix keeps the files of two runs in one second apart.
        self._events = SummaryWriter(
            str(self.folder / EVENTS), purge_step=first_step + 1, flush_secs=30, filename_suffix=f".{first_step}"
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._lines.close()
        self._events.close()
        if not self.storage.is_local:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line, and one point to each curve of TensorBoard."""
        self._lines.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def sync(self) -> None:
        """Write all lines to disk. For a run at `s3://`, upload the files over their older versions."""
        self._lines.flush()
        self._events.flush()
        if not self.storage.is_local:
            for file in (self.folder / LINES, *(self.folder / EVENTS).iterdir()):
                self.storage.replace(str(file.relative_to(self.folder)), file.read_bytes())

    def _keep_until(self, step: int) -> None:
        lines = read_metrics(self.storage)
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        (self.folder / LINES).write_text("".join(kept))


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` as dictionaries; without the last line if it has no end."""
    if storage.size(LINES) is None:
        return []
    whole, _, _ = storage.read(LINES).decode().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
