"""The settings of a command: defaults in code, then a file, then `--set key=value`, then the command's options.

The file is `ray_config.yaml`. Its settings are under `metadata.speechclip` and `metadata.runtime_env`. Ray ignores
`metadata`, so the same file also works with `ray up`. docs/configuration.md lists every key.

    load_settings("ray_config.yaml", {"store": "s3://bucket/features"}, ["featurize.max_rejected=0.1"])
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
    """The settings of `featurize` that change only speed and the sizes of objects, never a feature."""

    num_cpus: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tasks: TaskSizes = TaskSizes()
    batches: BatchSizes = BatchSizes()
    max_rejected: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    commit_seconds: Annotated[float, msgspec.Meta(ge=0)] = 20.0
    no_progress_seconds: Annotated[float, msgspec.Meta(gt=0)] = 1800.0


class Settings(Record, frozen=True):
    """Every key of `metadata.speechclip`, and `metadata.runtime_env`. Each command reads them."""

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
        """The encoders that are asked for. `layers` and `window` apply to speech only."""
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
                "no encoder named", "give --speech, --image or --text (as in --speech hubert:untrained-tiny)"
            )
        return requests

    def need(self, name: str, option: str = "") -> str:
        """A setting that the command needs. Raises `InvalidInput` that names the option (by default `--name`)."""
        value = getattr(self, name)
        if value is None:
            raise InvalidInput(
                f"no {name} given",
                f"give {option or f'--{name}'}, or set metadata.speechclip.{name} in {DEFAULT_CONFIG}",
            )
        return str(value)


def load_settings(path: str | None, options: Mapping[str, Any], overrides: Sequence[str]) -> Settings:
    """The settings of a file, changed by `overrides` such as `a.b=value`, then by `options`.

    Without `path` the file is ./ray_config.yaml, if there is one. Raises `InvalidInput` that names an unknown key or a
    wrong value.
    """
    tree = _read_file(path)
    for override in overrides:
        _set(tree, override)
    tree |= {name: value for name, value in options.items() if value is not None}
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"settings: {explain(error)}", "see docs/configuration.md for the keys") from None
    refuse_secrets(settings.runtime_env)
    paths = {name: getattr(settings, name) for name in ("manifest", "store", "run")}
    return msgspec.structs.replace(settings, **{name: whole_path(path) for name, path in paths.items() if path})


def whole_path(value: str) -> str:
    """A local path as an absolute one, because Ray's workers run in other folders. An address stays as it is."""
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
        raise InvalidInput(f"{source}: can't be read as a config ({error})", "give another file by -c") from None
    for name in metadata:
        if name not in found:
            raise InvalidInput(f"{source}: metadata has the unknown key {name!r}", f"use {' or '.join(METADATA)}")
    for name, tree in found.items():
        if not isinstance(tree, dict):
            raise InvalidInput(f"{source}: metadata.{name} is not a mapping", "write it as keys with values")
    if "runtime_env" in found["speechclip"]:
        raise InvalidInput(f"{source}: metadata.speechclip has runtime_env", "write it as metadata.runtime_env")
    return found["speechclip"] | {"runtime_env": found["runtime_env"]}


def _set(tree: dict[str, Any], override: str) -> None:
    name, is_given, value = override.partition("=")
    if not is_given:
        raise InvalidInput(f"--set {override}: no value", "write it as key=value, such as featurize.max_rejected=0.1")
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InvalidInput(f"--set {override}: {parent} is a value and has no keys", "see docs/configuration.md")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InvalidInput(f"--set {override}: the value is not valid YAML", "quote it") from None
