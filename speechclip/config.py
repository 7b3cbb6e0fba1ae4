"""The project's settings: defaults here, then `metadata` of ray_config.yaml, then the command line.

`ray_config.yaml` stays a valid `ray up` file: Ray ignores what stands under its free-form `metadata:`. Of ours are
`metadata.speechclip` and `metadata.runtime_env` there, and nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from speechclip.errors import InvalidInput
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import BatchSizes, EncoderRequest
from speechclip.records import MODALITIES, Record, explain
from speechclip.runtime_env import RuntimeEnv, refuse_secrets
from speechclip.spec import CodecName, Window

DEFAULT_CONFIG = "ray_config.yaml"
METADATA = ("speechclip", "runtime_env")


class RunSettings(Record, frozen=True):
    """What changes only speed and sizes, never a value."""

    num_cpus: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tasks: TaskSizes = TaskSizes()
    batches: BatchSizes = BatchSizes()
    max_rejected: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    commit_seconds: Annotated[float, msgspec.Meta(ge=0)] = 20.0
    no_progress_seconds: Annotated[float, msgspec.Meta(gt=0)] = 1800.0


class Settings(Record, frozen=True):
    """Everything that `metadata.speechclip` may hold, and `metadata.runtime_env`; every command reads it."""

    manifest: str | None = None
    store: str | None = None
    run: str | None = None
    speech: str | None = None
    image: str | None = None
    text: str | None = None
    layers: tuple[int, ...] | None = None
    codec: CodecName = "fp16"
    window: Window = "full"
    recipe: str = "base-parallel-flickr8k"
    recipe_overrides: dict[str, Any] = {}
    workers: Annotated[int, msgspec.Meta(ge=1)] = 1
    split: str = "test"
    min_workers: Annotated[int, msgspec.Meta(ge=1)] | None = None
    node_wait_seconds: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    featurize: RunSettings = RunSettings()
    runtime_env: RuntimeEnv = RuntimeEnv()

    def encoder_requests(self) -> list[EncoderRequest]:
        """The encoders asked for; layers and window are choices of speech alone."""
        names = {modality: getattr(self, modality) for modality in MODALITIES}
        requests = [
            EncoderRequest(
                encoder_name=name,
                modality=modality,
                layers=self.layers if modality == "speech" else None,
                codec=self.codec,
                window=self.window if modality == "speech" else "full",
            )
            for modality, name in names.items()
            if name is not None
        ]
        if not requests:
            raise InvalidInput(
                "no encoder named: give --speech, --image or --text (as in --speech hubert:untrained-tiny)"
            )
        return requests

    def need(self, name: str, option: str = "") -> str:
        """A setting that this command can't do without; `InvalidInput` says where to give it (by default `--name`)."""
        value = getattr(self, name)
        if value is None:
            raise InvalidInput(
                f"no {name}: give {option or f'--{name}'}, or set metadata.speechclip.{name} in {DEFAULT_CONFIG}"
            )
        return str(value)


def load_settings(path: str | None, options: Mapping[str, Any], overrides: Sequence[str]) -> Settings:
    """The settings of a file (by default ./ray_config.yaml if it is there), then `a.b=v` overrides, then options.

    Unknown keys are `InvalidInput` that names the key.
    """
    tree = _read_file(path)
    for override in overrides:
        _set(tree, override)
    tree |= {name: value for name, value in options.items() if value is not None}
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"settings: {explain(error)}; see docs/configuration.md for the keys") from None
    refuse_secrets(settings.runtime_env)
    paths = {name: getattr(settings, name) for name in ("manifest", "store", "run")}
    return msgspec.structs.replace(settings, **{name: whole_path(path) for name, path in paths.items() if path})


def whole_path(value: str) -> str:
    """An address as it is, a local path from the root: Ray's workers stand in other folders."""
    return value if "://" in value else str(Path(value).absolute())


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None and not Path(DEFAULT_CONFIG).exists():
        return {}
    source = path or DEFAULT_CONFIG
    try:
        document = yaml.safe_load(Path(source).read_text())
        metadata = (document or {}).get("metadata") or {}
        found = {name: metadata.get(name) or {} for name in METADATA}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise InvalidInput(f"{source}: can't be read as a config ({error})") from None
    for name in metadata:
        if name not in found:
            raise InvalidInput(f"{source}: metadata holds the unknown key {name!r}; known are {' and '.join(METADATA)}")
    for name, tree in found.items():
        if not isinstance(tree, dict):
            raise InvalidInput(f"{source}: metadata.{name} must be a mapping")
    if "runtime_env" in found["speechclip"]:
        raise InvalidInput(f"{source}: runtime_env stands in metadata, beside speechclip, not in it")
    return found["speechclip"] | {"runtime_env": found["runtime_env"]}


def _set(tree: dict[str, Any], override: str) -> None:
    name, is_given, value = override.partition("=")
    if not is_given:
        raise InvalidInput(f"--set {override}: write it as key=value, such as featurize.max_rejected=0.1")
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InvalidInput(f"--set {override}: {parent} holds a value, not keys")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InvalidInput(f"--set {override}: the value is no YAML; quote it") from None
