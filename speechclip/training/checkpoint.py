"""A run's folder: write-once checkpoints, and at the end the head and what it was made from.

    <run>/checkpoints/step-000500/{head.safetensors,optimizer.safetensors,checkpoint.json}
    <run>/{vocabulary.json,head.safetensors,run.json}

A checkpoint counts once its `checkpoint.json` lies there, which names the sha256 of the other two.
"""

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import safetensors.torch
from torch import Tensor

from speechclip.encoders import load_encoder
from speechclip.encoders.clip import TextWeights, load_text_weights
from speechclip.errors import Damaged, InvalidInput
from speechclip.heads import Head, HeadConfig, TextTower
from speechclip.records import Record, from_json, to_json
from speechclip.spec import Codec, EncoderSpec, Window
from speechclip.storage import Storage
from speechclip.training.recipe import Recipe
from speechclip.training.vocabulary import Vocabulary

HEAD, OPTIMIZER = "head.safetensors", "optimizer.safetensors"
CHECKPOINT, RUN, VOCABULARY, STATUS = "checkpoint.json", "run.json", "vocabulary.json", "status.json"
_Kind = TypeVar("_Kind", bound=Record)
# What belongs to the loss lies beside the head's weights under this prefix.
CRITERION = "criterion."


class FeatureSetRef(Record, frozen=True):
    """A feature set that a run reads: its fingerprint, the words that build its encoder, whether that was trained.

    `source`, `layers` (empty for vectors), `codec` and `window` build the encoder again without the store.
    """

    fingerprint: str
    encoder_name: str = msgspec.field(name="source")
    is_trained: bool
    layers: tuple[int, ...] = ()
    codec: Codec = "fp16"
    window: Window = "full"

    @classmethod
    def of(cls, spec: EncoderSpec, encoder_name: str) -> "FeatureSetRef":
        """The feature set of this spec, whose encoder those words built."""
        return cls(
            fingerprint=spec.fingerprint,
            encoder_name=encoder_name,
            is_trained=spec.is_trained,
            layers=spec.layers,
            codec=spec.codec,
            window=spec.window,
        )


class RunIdentity(Record, frozen=True):
    """Everything that decides a run's result: what must be the same for a run to be continued.

    `text` is the encoder whose text tower the head uses or whose vectors it is trained towards; `vocabulary` the digest
    of the reduced vocabulary of a head with keywords. A head that was trained elsewhere has `imported`, the sha256 of
    the file that it came from, an empty manifest and the catalog version -1.
    """

    manifest: str
    catalog_version: int
    speech: FeatureSetRef
    image: FeatureSetRef
    recipe: Recipe
    head: HeadConfig
    text: FeatureSetRef | None = None
    vocabulary: str = ""
    imported: str = ""

    @property
    def untrained(self) -> list[str]:
        """The fingerprints whose encoder has no trained weights."""
        return [
            source.fingerprint for source in (self.speech, self.image, self.text) if source and not source.is_trained
        ]


class Best(Record, frozen=True):
    """The step with the highest mean recall at 10 on the dev split, and that recall (0 to 1)."""

    step: int
    recall: float


class CheckpointInfo(Record, frozen=True):
    """The content of `checkpoint.json`; `order_digest` covers the rows of all `step` batches so far, in their order."""

    step: int
    identity: RunIdentity
    order_digest: str
    best: Best | None
    files: dict[str, str]
    format: int = 1


class RunInfo(Record, frozen=True):
    """The content of `run.json`: a finished run. `head_step` is where the head was taken: best on dev, or the last."""

    identity: RunIdentity
    num_rows: int
    num_missing: int
    batch_size: int
    num_steps: int
    order_digest: str
    head_step: int
    best: Best | None
    head_sha256: str
    format: int = 1


@dataclass(frozen=True)
class Run:
    """A finished run, ready to embed: the head is in eval mode and on the CPU."""

    info: RunInfo
    head: Head
    vocabulary: Vocabulary | None = None


def load_run(uri: str) -> Run:
    """The finished run in a folder, local or `s3://`; `InvalidInput` where there is none."""
    folder = RunFolder(uri)
    info = folder.finished()
    if info is None:
        raise InvalidInput(f"{uri}: no finished run ({RUN} is missing); run `speechclip train --out {uri}`")
    weights = folder.read_tensors(HEAD, info.head_sha256)
    vocabulary = folder.read_vocabulary(info.identity)
    head = build_head(info.identity, vocabulary)
    head.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(CRITERION)})
    return Run(info, head.eval(), vocabulary)


def build_head(identity: RunIdentity, vocabulary: Vocabulary | None) -> Head:
    """A new head of the run, on its text tower where it chooses keywords; `InvalidInput` if that is not the run's."""
    if vocabulary is None:
        return identity.head.build()
    assert identity.text is not None
    text = load_text_weights(identity.text.encoder_name, identity.text.codec)
    if text.spec.fingerprint != identity.text.fingerprint:
        raise InvalidInput(
            f"{identity.text.encoder_name} is {text.spec.fingerprint} here, but the head was trained on "
            f"{identity.text.fingerprint}; give the weights that it was trained with"
        )
    return identity.head.build(build_tower(text, vocabulary))


def build_tower(text: TextWeights, vocabulary: Vocabulary) -> TextTower:
    """A CLIP's text tower over these words."""
    return TextTower(
        text.tensors, num_heads=text.num_heads, is_quick_gelu=text.is_quick_gelu, vocabulary=vocabulary.ids
    )


def find_tower(encoder_name: str, image: EncoderSpec, codec: Codec) -> EncoderSpec:
    """The spec of the text tower beside stored image vectors; `InvalidInput` where the name now gives another CLIP.

    `codec` is that of the texts which the spec will be compared with.
    """
    text = load_text_weights(encoder_name, codec).spec
    found = load_encoder(encoder_name, "image", codec=image.codec).spec
    if found.weights != image.weights:
        raise InvalidInput(
            f"{encoder_name} is {found.fingerprint} here, the stored images are {image.fingerprint}: keywords need the "
            "text tower of the same CLIP; give the weights that the store was made with"
        )
    return text


class RunFolder:
    """The files of one run."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.storage = Storage(uri)

    def finished(self) -> RunInfo | None:
        """What `run.json` says, None while the run is not at its end."""
        if self.storage.size(RUN) is None:
            return None
        return self._read_record(RUN, RunInfo)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        if not self.storage.exists("checkpoints"):
            return []
        names = [path.split("/") for path in self.storage.list("checkpoints")]
        return sorted(int(parts[-2].removeprefix("step-")) for parts in names if parts[-1] == CHECKPOINT)

    def checkpoint(self, step: int) -> CheckpointInfo:
        """What is known of the checkpoint of that step."""
        return self._read_record(f"{_folder(step)}/{CHECKPOINT}", CheckpointInfo)

    def last_checkpoint(self) -> CheckpointInfo | None:
        """The newest complete checkpoint, if there is one."""
        steps = self.steps()
        return self.checkpoint(steps[-1]) if steps else None

    def write_checkpoint(self, info: CheckpointInfo, head: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Store a checkpoint, its JSON last; `InvalidInput` if it is there already: two runs share the folder."""
        folder = _folder(info.step)
        if self.storage.size(f"{folder}/{CHECKPOINT}") is not None:
            raise InvalidInput(f"{self.uri}: step {info.step} is there already; another training writes to this folder")
        files = {}
        for name, tensors in ((HEAD, head), (OPTIMIZER, optimizer)):
            files[name] = self._replace(f"{folder}/{name}", safetensors.torch.save(tensors))
        complete = msgspec.structs.replace(info, files=files)
        if not self.storage.create(f"{folder}/{CHECKPOINT}", to_json(complete)):
            raise InvalidInput(f"{self.uri}: step {info.step} is there already; another training writes to this folder")

    def read_checkpoint(self, info: CheckpointInfo) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of head and optimizer; `Damaged` where a file is not the one that was written."""
        folder = _folder(info.step)
        head, optimizer = (self.read_tensors(f"{folder}/{name}", info.files[name]) for name in (HEAD, OPTIMIZER))
        return head, optimizer

    def read_tensors(self, path: str, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file, checked against its digest."""
        data = self.storage.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged(
                f"{self.storage.address(path)}: not the bytes that were written; train again from a new folder"
            )
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
        return tensors

    def write_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Keep the reduced vocabulary of the run, which its identity names by digest."""
        self.storage.replace(VOCABULARY, vocabulary.to_bytes())

    def read_vocabulary(self, identity: RunIdentity) -> Vocabulary | None:
        """The run's reduced vocabulary, None for a head without keywords; `Damaged` if it is not the one it names."""
        if not identity.vocabulary:
            return None
        try:
            vocabulary = from_json(self.storage.read(VOCABULARY), Vocabulary)
        except (msgspec.DecodeError, InvalidInput):
            vocabulary = None
        if vocabulary is None or vocabulary.digest != identity.vocabulary:
            raise Damaged(f"{self.storage.address(VOCABULARY)}: not the run's vocabulary; train again in a new folder")
        return vocabulary

    def prune(self, keep: set[int]) -> None:
        """Delete all checkpoints but these, each JSON first."""
        for step in set(self.steps()) - keep:
            folder = _folder(step)
            self.storage.delete([f"{folder}/{CHECKPOINT}"])
            self.storage.delete(list(self.storage.list(folder)))

    def finish(self, info: RunInfo, head: dict[str, Tensor]) -> RunInfo:
        """Store the final head and `run.json`; the record with the head's digest."""
        complete = msgspec.structs.replace(info, head_sha256=self._replace(HEAD, safetensors.torch.save(head)))
        if not self.storage.create(RUN, to_json(complete)):
            raise InvalidInput(f"{self.uri}: the run is finished already; another training writes to this folder")
        return complete

    def _read_record(self, path: str, kind: type[_Kind]) -> _Kind:
        try:
            return from_json(self.storage.read(path), kind)
        except (msgspec.DecodeError, InvalidInput) as error:
            raise Damaged(
                f"{self.storage.address(path)}: no record of a run ({error}); train again from a new folder"
            ) from None

    def _replace(self, path: str, data: bytes) -> str:
        """Write a file that nothing names yet, over what a run cut short may have left; its sha256."""
        self.storage.replace(path, data)
        return hashlib.sha256(data).hexdigest()


def check_continues(folder: RunFolder, identity: RunIdentity) -> CheckpointInfo | None:
    """The checkpoint that a run of this identity goes on from; `InvalidInput` where the folder holds another run."""
    found = folder.last_checkpoint()
    if found is None or found.identity == identity:
        return found
    raise InvalidInput(
        f"{folder.uri}: holds step {found.step} of another run ({what_differs(found.identity, identity)}); "
        "train into a new folder"
    )


def what_differs(before: RunIdentity, now: RunIdentity) -> str:
    """The choices in which two runs differ, as `recipe.seed was 1, is 2`; what follows from others is left out."""
    changed = _changes(before, now)
    # The head's sizes follow from recipe and features; they alone differ only after a change of the code.
    chosen = [change for change in changed if not change.startswith("head.")]
    return "; ".join(chosen or changed)


def _changes(before: Record, now: Record, prefix: str = "") -> list[str]:
    changes: list[str] = []
    for name in before.__struct_fields__:
        was, is_now = getattr(before, name), getattr(now, name)
        if was == is_now:
            continue
        if isinstance(was, Record) and isinstance(is_now, Record):
            changes += _changes(was, is_now, f"{prefix}{name}.")
        else:
            changes.append(f"{prefix}{name} was {was!r}, is {is_now!r}")
    return changes


def _folder(step: int) -> str:
    return f"checkpoints/step-{step:06d}"
