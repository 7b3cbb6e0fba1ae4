"""A recipe: all choices of a training that can change its result, and no others.

Source: docs/model.md, "Training settings".
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from speechclip.errors import InvalidInput
from speechclip.records import Record, explain
from speechclip.spec import EncoderSpec

# The lowest allowed value of whole numbers and weights.
LEAST = {
    "batch_size": 2, "accumulation": 1, "max_steps": 1, "max_frames": 1, "validate_every": 1, "checkpoint_every": 1,
    "num_heads": 1, "num_keywords": 1, "feed_forward_factor": 1, "embedding_width": 1, "warmup_steps": 0, "seed": 0,
    "parallel_weight": 0, "cascaded_weight": 0, "length_weight": 0, "image_weight": 0, "text_weight": 0,
    "final_factor": 0, "weight_decay": 0,
}  # fmt: skip
# The highest seed that the generators of both NumPy and torch accept.
MOST_SEED = 2**63 - 1
ABOVE_ZERO = ("temperature", "quantizer_temperature", "learning_rate", "clip_norm")
HeadKind = Literal["parallel", "cascaded", "hybrid", "cascaded-plus", "hybrid-plus"]


class Recipe(Record, frozen=True):
    """How a head is trained. The defaults are the settings of the official Base model with a parallel head.

    docs/training.md has a row for each key: its meaning, its default and an example.
    """

    name: str
    # The head, and the pair of encoders that the recipe is for.
    head: HeadKind = "parallel"
    encoders: Literal["base", "large"] | None = None
    normalize_states: Literal["none", "s3prl", "method1", "method2"] = "none"
    num_heads: int | None = None
    block: Literal["attention", "transformer"] = "attention"
    feed_forward_factor: int = 4
    dropout: float = 0.1
    image_projection: bool = False
    embedding_width: int | None = None
    # Heads with keywords.
    num_keywords: int = 8
    keyword_projection: tuple[int, ...] = ()
    parallel_projection: tuple[int, ...] = ()
    keyword_norm: Literal["each", "each-apart", "same"] = "each"
    norm_start: Literal["literal", "corrected"] = "literal"
    norm_scope: Literal["local", "synchronised"] = "local"
    quantizer_temperature: float = 0.1
    is_quantizer_learnable: bool = False
    # The loss.
    parallel_weight: float = 1.0
    cascaded_weight: float = 1.0
    length_weight: float = 0.25
    image_weight: float = 1.0
    text_weight: float = 0.0
    is_same_image_masked: bool = True
    temperature: float = 0.07
    is_temperature_learnable: bool = False
    # The steps.
    accumulation: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 256
    max_steps: int = 50_000
    warmup_steps: int = 5_000
    learning_rate: float = 1e-4
    final_factor: float = 1e-4
    weight_decay: float = 1e-6
    clip_norm: float = 4.0
    seed: int = 7122
    # The data.
    window: Literal["full", "sliced", "crops"] = "sliced"
    max_frames: int = 319
    train_split: str = "train"
    dev_split: str = "dev"
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise self._refuse(f"{name} is {value}", "give a finite number")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise self._refuse(f"{name} is {value}, below {least}", f"give at least {least}")
        for name in ABOVE_ZERO:
            if getattr(self, name) <= 0:
                raise self._refuse(f"{name} is {getattr(self, name)}", "give a number above 0")
        if self.seed > MOST_SEED:
            raise self._refuse(f"seed is {self.seed}, above {MOST_SEED}", "give a smaller one")
        for name in ("keyword_projection", "parallel_projection"):
            if (least_width := min(getattr(self, name), default=1)) < 1:
                raise self._refuse(f"{name} has a width of {least_width}, below 1", "give widths of at least 1")
        if not 0 <= self.dropout < 1:
            raise self._refuse(f"dropout is {self.dropout}", "give a number from 0 to below 1")
        if not self.image_weight + self.text_weight:
            raise self._refuse("image_weight and text_weight are both 0", "give one a weight")
        if not sum(self.branch_weights.values()):
            raise self._refuse("no branch has a weight", "set parallel_weight or cascaded_weight")
        if self.has_keywords and self.image_projection:
            raise self._refuse(
                f"the embeddings of a {self.head} head are in CLIP's own space", "image_projection must be false"
            )

    def _refuse(self, problem: str, advice: str) -> InvalidInput:
        return InvalidInput(f"recipe {self.name}: {problem}", advice)

    @property
    def has_keywords(self) -> bool:
        """Whether the head chooses keywords. Such a head needs CLIP's text tower and the captions' vocabulary."""
        return self.head != "parallel"

    @property
    def branch_weights(self) -> dict[str, float]:
        """The weight of the loss of each branch that the head has."""
        weights = {}
        if not self.head.startswith("cascaded"):
            weights["parallel"] = self.parallel_weight
        if self.has_keywords:
            weights["cascaded"] = self.cascaded_weight
        return weights

    @property
    def target_weights(self) -> dict[str, float]:
        """The weights of the targets `image` and `text`, without those of weight 0."""
        weights = {"image": self.image_weight, "text": self.text_weight}
        return {name: weight for name, weight in weights.items() if weight}

    def check_fits(self, speech: EncoderSpec) -> None:
        """Raise `InvalidInput` if frames of this spec can't be read by the recipe's `window`."""
        if (self.window == "crops") != bool(speech.num_crops):
            raise InvalidInput(
                f"recipe {self.name} has window {self.window}, but {speech.fingerprint} was encoded with window "
                f"{speech.window}",
                "set the recipe's window to crops, or name a feature set of window full by --speech"
                if speech.num_crops
                else "set the recipe's window to sliced or full, or run `speechclip featurize --window crops=4`",
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that follows `step` updates.

        It rises linearly from 0 to `learning_rate` during the warm-up. Then it falls linearly to `learning_rate` times
        `final_factor` at the last step.
        """
        done = step + 1
        if done < self.warmup_steps:
            return self.learning_rate * done / self.warmup_steps
        progress = min(1.0, (done - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.learning_rate * (1 + (self.final_factor - 1) * progress)


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The package's recipe of that name, or the one in a YAML file, with the values of `overrides`.

    An override may be given as text: ``load_recipe("demo-parallel", {"max_steps": "500"})``. `InvalidInput` names the
    key that is unknown or has a wrong value.
    """
    values = _read(name_or_path) | dict(overrides or {})
    unknown = sorted(str(key) for key in values.keys() - set(Recipe.__struct_fields__))
    if unknown:
        known = ", ".join(Recipe.__struct_fields__)
        raise InvalidInput(f"recipe {name_or_path}: no such key {', '.join(unknown)}", f"a recipe has {known}")
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"recipe {name_or_path}: {explain(error)}", "correct that key") from None


def recipe_names() -> list[str]:
    """The names of the package's recipes, sorted."""
    folder = resources.files("speechclip") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(name_or_path: str) -> dict[str, Any]:
    """The keys and values in the file. Without a key `name` the file's name is taken."""
    if name_or_path.endswith((".yaml", ".yml")):
        file: Any = Path(name_or_path)
    else:
        file = resources.files("speechclip") / "recipes" / f"{name_or_path}.yaml"
    if not file.is_file():
        near = get_close_matches(name_or_path, recipe_names(), cutoff=0) if name_or_path else []
        raise InvalidInput(
            f"no recipe {name_or_path!r}",
            "name a .yaml file or a recipe that `speechclip recipes` lists, such as "
            f"{', '.join(near) or 'demo-parallel'}",
        )
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInput(f"{name_or_path}: can't be read as a recipe ({error})", "correct the YAML") from None
    if not isinstance(values, dict):
        raise InvalidInput(
            f"{name_or_path}: a recipe is a mapping of keys to values", "write lines such as `max_steps: 500`"
        )
    return {"name": Path(name_or_path).stem} | values
