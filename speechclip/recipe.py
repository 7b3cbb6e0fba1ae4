"""A recipe: every choice of a training run that can change its result, and nothing else (SPEECHCLIP_SPEC 2.7)."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from speechclip.errors import InvalidInput
from speechclip.records import Record, explain
from speechclip.spec import EncoderSpec


class Recipe(Record, frozen=True):
    """How a head is trained; the defaults are those of the official Base model.

    `embedding_width` left out is the image's. `window` says what of an utterance a step reads: `full` all of it;
    `sliced` `max_frames` of a longer one's, from a random place; `crops` one of the crops that the feature set holds of
    a longer one, another each epoch. `validate_every` and `checkpoint_every` count steps.
    """

    name: str
    head: Literal["parallel"] = "parallel"
    normalize_states: Literal["none", "s3prl", "method1", "method2"] = "none"
    num_heads: int = 8
    feed_forward_factor: int = 4
    dropout: float = 0.1
    image_projection: bool = False
    embedding_width: int | None = None
    temperature: float = 0.07
    is_temperature_learnable: bool = False
    batch_size: int = 256
    max_steps: int = 50_000
    warmup_steps: int = 5_000
    learning_rate: float = 1e-4
    final_factor: float = 1e-4
    weight_decay: float = 1e-6
    clip_norm: float = 4.0
    seed: int = 7122
    window: Literal["full", "sliced", "crops"] = "sliced"
    max_frames: int = 319
    train_split: str = "train"
    dev_split: str = "dev"
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        least = {"batch_size": 2, "seed": 0, "warmup_steps": 0}
        counts = ("max_steps", "max_frames", "validate_every", "checkpoint_every", "num_heads", "feed_forward_factor")
        for name in (*least, *counts):
            if getattr(self, name) < least.get(name, 1):
                raise InvalidInput(f"recipe {self.name}: {name} is {getattr(self, name)}, below {least.get(name, 1)}")
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"recipe {self.name}: dropout is {self.dropout}, expected 0 up to (not including) 1")
        if self.temperature <= 0 or self.learning_rate <= 0 or self.clip_norm <= 0:
            raise InvalidInput(f"recipe {self.name}: temperature, learning_rate and clip_norm must be above 0")

    def check_fits(self, speech: EncoderSpec) -> None:
        """`InvalidInput` where the recipe's window can't be read from this feature set."""
        if (self.window == "crops") != bool(speech.num_crops):
            advice = (
                "set the recipe's window to crops, or name a full set by --speech"
                if speech.num_crops
                else "set the recipe's window to sliced or full, or run `speechclip featurize --window crops=4`"
            )
            raise InvalidInput(
                f"recipe {self.name} has window {self.window}, but {speech.fingerprint} was encoded with window "
                f"{speech.window}; {advice}"
            )

    def learning_rate_at(self, step: int) -> float:
        """The rate of the update after `step` updates: a linear rise, then linear to `final_factor` at the end."""
        done = step + 1
        if done < self.warmup_steps:
            return self.learning_rate * done / self.warmup_steps
        progress = min(1.0, (done - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.learning_rate * (1 + (self.final_factor - 1) * progress)


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name (those of the package) or in that YAML file, with single keys replaced.

    A value of an override may be text. Unknown keys and values that do not fit are `InvalidInput` that names the key.
    """
    values = _read(name_or_path) | dict(overrides or {})
    unknown = sorted(values.keys() - set(Recipe.__struct_fields__))
    if unknown:
        known = ", ".join(Recipe.__struct_fields__)
        raise InvalidInput(f"recipe {name_or_path}: no such key {', '.join(unknown)}; a recipe has {known}")
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"recipe {name_or_path}: {explain(error)}; mend that key") from None


def _read(name_or_path: str) -> dict[str, Any]:
    """The mapping in the file; its `name` is the file's unless it says otherwise."""
    if name_or_path.endswith((".yaml", ".yml")):
        file: Any = Path(name_or_path)
    else:
        file = resources.files("speechclip") / "recipes" / f"{name_or_path}.yaml"
    if not file.is_file():
        folder = resources.files("speechclip") / "recipes"
        known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        raise InvalidInput(f"no recipe {name_or_path!r}: name a .yaml file or one of {', '.join(known)}")
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(f"{name_or_path}: can't be read as a recipe ({error})") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{name_or_path}: a recipe is a mapping of keys to values")
    return {"name": Path(name_or_path).stem} | values
