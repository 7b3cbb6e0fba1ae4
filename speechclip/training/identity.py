"""The records of a run: what decides its result, and what `checkpoint.json` and `run.json` contain."""

import msgspec

from speechclip.heads import HeadConfig
from speechclip.records import Record
from speechclip.spec import CodecName, EncoderSpec, Window
from speechclip.training.recipe import Recipe


class FeatureSetRef(Record, frozen=True):
    """A feature set that a run reads, and what builds its encoder again without the store.

    `layers` is empty for vectors. `is_trained` says whether the encoder's weights were trained.
    """

    fingerprint: str
    encoder_name: str = msgspec.field(name="source")
    is_trained: bool
    layers: tuple[int, ...] = ()
    codec: CodecName = "fp16"
    window: Window = "full"

    @classmethod
    def of(cls, spec: EncoderSpec, encoder_name: str) -> "FeatureSetRef":
        """The feature set of this spec. `encoder_name` is the name by which its encoder was built."""
        return cls(
            fingerprint=spec.fingerprint,
            encoder_name=encoder_name,
            is_trained=spec.is_trained,
            layers=spec.layers,
            codec=spec.codec,
            window=spec.window,
        )


class RunIdentity(Record, frozen=True):
    """Everything that decides a run's result. A run can be continued only if all of it is equal.

    `manifest` is the manifest's digest. `text` is the encoder whose text tower the head uses, or whose vectors the run
    trains towards. `vocabulary` is the digest of the reduced vocabulary, empty for a head without keywords. For a head
    that was trained elsewhere `imported` is the sha256 of its file, `manifest` is empty and `catalog_version` is -1.
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
        """The fingerprints of the feature sets whose encoder has random weights."""
        return [
            source.fingerprint for source in (self.speech, self.image, self.text) if source and not source.is_trained
        ]


class Best(Record, frozen=True):
    """The step with the highest mean recall at 10 on the dev split, and that recall, from 0 to 1."""

    step: int
    recall: float


class CheckpointInfo(Record, frozen=True):
    """The content of `checkpoint.json`.

    `order_digest` is a digest of all rows trained on so far, in their order. `files` has the sha256 of each file.
    """

    step: int
    identity: RunIdentity
    order_digest: str
    best: Best | None
    files: dict[str, str]
    format: int = 1


class RunInfo(Record, frozen=True):
    """The content of `run.json`, which only a finished run has.

    `num_rows` are the rows of the train split; `num_missing` more lack a stored feature. `batch_size` is the number of
    rows in a batch, which is smaller than the recipe's if there are fewer rows. The head is the one after `head_step`
    steps: the best on dev, or the last if there is no dev split.
    """

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


def what_differs(before: RunIdentity, now: RunIdentity) -> str:
    """The differences between two runs, for a message: ``recipe.seed was 1, is 2; catalog_version was 3, is 4``."""
    changed = _changes(before, now)
    # The sizes of the head follow from recipe and features. They differ alone only after a change of the code.
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
