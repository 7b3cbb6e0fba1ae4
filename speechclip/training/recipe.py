"""A recipe: every choice of a training run that can change its result, and nothing else.

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

# The least value of whole numbers and weights.
LEAST = {
    "batch_size": 2, "accumulation": 1, "max_steps": 1, "max_frames": 1, "validate_every": 1, "checkpoint_every": 1,
    "num_heads": 1, "num_keywords": 1, "feed_forward_factor": 1, "embedding_width": 1, "warmup_steps": 0, "seed": 0,
    "parallel_weight": 0, "cascaded_weight": 0, "length_weight": 0, "image_weight": 0, "text_weight": 0,
    "final_factor": 0, "weight_decay": 0,
}  # fmt: skip
# What NumPy's and torch's generators take alike.
MOST_SEED = 2**63 - 1
ABOVE_ZERO = ("temperature", "quantizer_temperature", "learning_rate", "clip_norm")
HeadKind = Literal["parallel", "cascaded", "hybrid", "cascaded-plus", "hybrid-plus"]


class Recipe(Record, frozen=True):
    """How a head is trained; the defaults are those of the official Base model.

    `encoders` says for which published pair of encoders the recipe is meant. `num_heads` left out is 8 for a parallel
    head and 1 for one with keywords; `embedding_width` left out is the image's. `keyword_projection` and, of a hybrid
    head, `parallel_projection` are hidden widths before the last linear layer. `norm_scope` is whose rows the keyword
    BatchNorm's statistics cover: one worker's (as officially) or all workers' (independent of their number).
    `parallel_weight` and `cascaded_weight` weigh the branches' losses, `image_weight` and `text_weight` their targets:
    CLIP's vector of the image and of the transcript. `accumulation` batches make one step, each its own negatives.
    `precision` is that of the head's forward pass on a GPU; on a CPU it is fp32. `window` says what of an utterance a
    step reads: `full` all of it; `sliced` `max_frames` of a longer one's, from a random place; `crops` one of the crops
    that the feature set holds of a longer one, another each epoch. `validate_every` and `checkpoint_every` count steps.
    """

    name: str
    head: HeadKind = "parallel"
    encoders: Literal["base", "large"] | None = None
    normalize_states: Literal["none", "s3prl", "method1", "method2"] = "none"
    num_heads: int | None = None
    block: Literal["attention", "transformer"] = "attention"
    feed_forward_factor: int = 4
    dropout: float = 0.1
    image_projection: bool = False
    embedding_width: int | None = None
    num_keywords: int = 8
    keyword_projection: tuple[int, ...] = ()
    parallel_projection: tuple[int, ...] = ()
    keyword_norm: Literal["each", "each-apart", "same"] = "each"
    norm_start: Literal["literal", "corrected"] = "literal"
    norm_scope: Literal["local", "synchronised"] = "local"
    quantizer_temperature: float = 0.1
    is_quantizer_learnable: bool = False
    parallel_weight: float = 1.0
    cascaded_weight: float = 1.0
    length_weight: float = 0.25
    image_weight: float = 1.0
    text_weight: float = 0.0
    is_same_image_masked: bool = True
    temperature: float = 0.07
    is_temperature_learnable: bool = False
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
                raise InvalidInput(f"recipe {self.name}: {name} is {value}, expected a finite number")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInput(f"recipe {self.name}: {name} is {value}, below {least}")
        for name in ABOVE_ZERO:
            if getattr(self, name) <= 0:
                raise InvalidInput(f"recipe {self.name}: {name} is {getattr(self, name)}, it must be above 0")
        if self.seed > MOST_SEED:
            raise InvalidInput(f"recipe {self.name}: seed is {self.seed}, above {MOST_SEED}")
        for name in ("keyword_projection", "parallel_projection"):
            if (least_width := min(getattr(self, name), default=1)) < 1:
                raise InvalidInput(f"recipe {self.name}: {name} has a width of {least_width}, below 1")
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"recipe {self.name}: dropout is {self.dropout}, expected 0 up to (not including) 1")
        if not self.image_weight + self.text_weight:
            raise InvalidInput(f"recipe {self.name}: image_weight and text_weight are both 0; give one a weight")
        if not sum(self.branch_weights.values()):
            raise InvalidInput(f"recipe {self.name}: no branch has a weight; set parallel_weight or cascaded_weight")
        if self.has_keywords and self.image_projection:
            raise InvalidInput(
                f"recipe {self.name}: a {self.head} head lies in CLIP's own space, so image_projection must be false"
            )

    @property
    def has_keywords(self) -> bool:
        """Whether the head chooses words of CLIP's vocabulary, and so needs CLIP's text tower."""
        return self.head != "parallel"

    @property
    def branch_weights(self) -> dict[str, float]:
        """The weight of each branch that the head has."""
        weights = {}
        if not self.head.startswith("cascaded"):
            weights["parallel"] = self.parallel_weight
        if self.has_keywords:
            weights["cascaded"] = self.cascaded_weight
        return weights

    @property
    def target_weights(self) -> dict[str, float]:
        """The weight of each target that the head is trained towards: image, text."""
        weights = {"image": self.image_weight, "text": self.text_weight}
        return {name: weight for name, weight in weights.items() if weight}

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
    unknown = sorted(str(key) for key in values.keys() - set(Recipe.__struct_fields__))
    if unknown:
        known = ", ".join(Recipe.__struct_fields__)
        raise InvalidInput(f"recipe {name_or_path}: no such key {', '.join(unknown)}; a recipe has {known}")
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"recipe {name_or_path}: {explain(error)}; mend that key") from None


def recipe_names() -> list[str]:
    """The recipes of the package, in order."""
    folder = resources.files("speechclip") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(name_or_path: str) -> dict[str, Any]:
    """The mapping in the file; its `name` is the file's unless it says otherwise."""
    if name_or_path.endswith((".yaml", ".yml")):
        file: Any = Path(name_or_path)
    else:
        file = resources.files("speechclip") / "recipes" / f"{name_or_path}.yaml"
    if not file.is_file():
        near = get_close_matches(name_or_path, recipe_names(), cutoff=0) if name_or_path else []
        raise InvalidInput(
            f"no recipe {name_or_path!r}: name a .yaml file or a recipe that `speechclip recipes` lists, such as "
            f"{', '.join(near) or 'demo-parallel'}"
        )
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInput(f"{name_or_path}: can't be read as a recipe ({error})") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{name_or_path}: a recipe is a mapping of keys to values")
    return {"name": Path(name_or_path).stem} | values
