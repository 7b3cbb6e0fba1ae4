"""The folder of a run: checkpoints while it trains, and at the end the head.

    <run>/checkpoints/step-000500/{head.safetensors,optimizer.safetensors,checkpoint.json}
    <run>/{vocabulary.json,head.safetensors,run.json}

`checkpoint.json` is written last and has the sha256 of the other two files. A checkpoint without it is incomplete and
is ignored.
"""

import hashlib
from typing import TypeVar

import msgspec
import safetensors.torch
from torch import Tensor

from speechclip.errors import Damaged, InvalidInput
from speechclip.records import Record, from_json, to_json
from speechclip.storage import Storage
from speechclip.training.identity import CheckpointInfo, RunIdentity, RunInfo, what_differs
from speechclip.training.vocabulary import Vocabulary

HEAD, OPTIMIZER = "head.safetensors", "optimizer.safetensors"
CHECKPOINT, RUN, VOCABULARY, STATUS = "checkpoint.json", "run.json", "vocabulary.json", "status.json"
# The loss may have a parameter, its temperature. It is stored with the head's weights, under this prefix.
CRITERION = "criterion."
_NEW_FOLDER = "train into a new folder"
_Kind = TypeVar("_Kind", bound=Record)


class RunFolder:
    """Reads and writes the files of one run, in a local folder or at an `s3://` address."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.storage = Storage(uri)

    def finished(self) -> RunInfo | None:
        """The content of `run.json`; None if the run is not finished."""
        if self.storage.size(RUN) is None:
            return None
        return self._read_record(RUN, RunInfo)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        if not self.storage.exists("checkpoints"):
            return []
        names = [path.split("/") for path in self.storage.list("checkpoints")]
        return sorted(int(parts[-2].removeprefix("step-")) for parts in names if parts[-1] == CHECKPOINT)

    def checkpoint(self, step: int) -> CheckpointInfo:
        """The content of `checkpoint.json` of that step."""
        return self._read_record(f"{_folder(step)}/{CHECKPOINT}", CheckpointInfo)

    def last_checkpoint(self) -> CheckpointInfo | None:
        """The newest complete checkpoint; None if there is none."""
        steps = self.steps()
        return self.checkpoint(steps[-1]) if steps else None

    def write_checkpoint(self, info: CheckpointInfo, head: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Store a checkpoint. `InvalidInput` if one of that step exists: then two trainings share the folder."""
        folder = _folder(info.step)
        if self.storage.size(f"{folder}/{CHECKPOINT}") is not None:
            raise self._shared(f"step {info.step} exists already")
        files = {}
        for name, tensors in ((HEAD, head), (OPTIMIZER, optimizer)):
            files[name] = self._replace(f"{folder}/{name}", safetensors.torch.save(tensors))
        complete = msgspec.structs.replace(info, files=files)
        if not self.storage.create(f"{folder}/{CHECKPOINT}", to_json(complete)):
            raise self._shared(f"step {info.step} exists already")

    def read_checkpoint(self, info: CheckpointInfo) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of the head and of the optimizer; `Damaged` if a file has another sha256 than `info` says."""
        folder = _folder(info.step)
        head, optimizer = (self.read_tensors(f"{folder}/{name}", info.files[name]) for name in (HEAD, OPTIMIZER))
        return head, optimizer

    def read_tensors(self, path: str, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file; `Damaged` if its sha256 is another."""
        data = self.storage.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged(f"{self.storage.address(path)}: its sha256 is not the recorded one", _NEW_FOLDER)
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
        return tensors

    def write_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Store the reduced vocabulary of the run."""
        self.storage.replace(VOCABULARY, vocabulary.to_bytes())

    def read_vocabulary(self, identity: RunIdentity) -> Vocabulary | None:
        """The reduced vocabulary of the run; None for a head without keywords.

        `Damaged` if its digest is not the one in the identity.
        """
        if not identity.vocabulary:
            return None
        try:
            vocabulary = from_json(self.storage.read(VOCABULARY), Vocabulary)
        except (msgspec.DecodeError, InvalidInput):
            vocabulary = None
        if vocabulary is None or vocabulary.digest != identity.vocabulary:
            raise Damaged(f"{self.storage.address(VOCABULARY)}: not the run's vocabulary", _NEW_FOLDER)
        return vocabulary

    def prune(self, keep: set[int]) -> None:
        """Delete all checkpoints except those of the steps in `keep`."""
        for step in set(self.steps()) - keep:
            folder = _folder(step)
            # First the JSON: a crash between the two leaves an incomplete checkpoint, which is ignored.
            self.storage.delete([f"{folder}/{CHECKPOINT}"])
            self.storage.delete(list(self.storage.list(folder)))

    def finish(self, info: RunInfo, head: dict[str, Tensor]) -> RunInfo:
        """Store the final head, then `run.json`; the record as stored, with the head's sha256."""
        complete = msgspec.structs.replace(info, head_sha256=self._replace(HEAD, safetensors.torch.save(head)))
        if not self.storage.create(RUN, to_json(complete)):
            raise self._shared("the run is finished already")
        return complete

    def _shared(self, problem: str) -> InvalidInput:
        return InvalidInput(f"{self.uri}: {problem}: another training writes to this folder", _NEW_FOLDER)

    def _read_record(self, path: str, kind: type[_Kind]) -> _Kind:
        try:
            return from_json(self.storage.read(path), kind)
        except (msgspec.DecodeError, InvalidInput) as error:
            raise Damaged(f"{self.storage.address(path)}: no record of a run ({error})", _NEW_FOLDER) from None

    def _replace(self, path: str, data: bytes) -> str:
        """Write a file and return its sha256. An interrupted run may have left one of that name."""
        self.storage.replace(path, data)
        return hashlib.sha256(data).hexdigest()


def check_continues(folder: RunFolder, identity: RunIdentity) -> CheckpointInfo | None:
    """The checkpoint from which a run of this identity continues; None if the folder has no checkpoint.

    `InvalidInput` if the folder holds a run of another identity.
    """
    found = folder.last_checkpoint()
    if found is None or found.identity == identity:
        return found
    raise InvalidInput(
        f"{folder.uri}: holds step {found.step} of another run ({what_differs(found.identity, identity)})", _NEW_FOLDER
    )


def _folder(step: int) -> str:
    return f"checkpoints/step-{step:06d}"
