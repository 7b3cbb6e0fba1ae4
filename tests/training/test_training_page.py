"""docs/training.md has a row for every key of a recipe and for every column of the metrics, with the right defaults."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from support.paired_corpus import write_corpus

from speechclip.config import load_settings
from speechclip.evaluation.evaluator import validator
from speechclip.storage import Storage
from speechclip.training.metrics import read_metrics
from speechclip.training.recipe import Recipe, load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| `\w+` \|.*\|.*\|", line) and line.count("|") == 5
]
DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Recipe)}


def test_every_key_of_a_recipe_has_a_row_in_the_order_of_the_record() -> None:
    assert [key.strip("`") for key, *_ in ROWS] == list(Recipe.__struct_fields__)


@pytest.mark.parametrize(("key", "default"), [(row[0].strip("`"), row[2].strip("`")) for row in ROWS if row[2]])
def test_the_default_is_the_one_in_the_code(key: str, default: str) -> None:
    expected = DEFAULTS[key]
    assert yaml.safe_load(default) == (list(expected) if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize(("key", "example"), [(row[0].strip("`"), row[3].strip("`")) for row in ROWS])
def test_the_example_is_a_recipe_and_changes_the_default(key: str, example: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(example)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert list(yaml.safe_load(example)) == [key]
    assert getattr(recipe, key) != DEFAULTS[key]
    # By `--set`, as the page says.
    (tmp_path / "settings.yaml").write_text("")
    overrides = load_settings(str(tmp_path / "settings.yaml"), {}, [f"recipe_overrides.{example.replace(': ', '=')}"])
    (tmp_path / "mine.yaml").write_text("{}")
    assert load_recipe(str(tmp_path / "mine.yaml"), overrides.recipe_overrides) == recipe


def test_the_recipe_of_the_session_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    assert load_recipe(str(tmp_path / "mine.yaml")).head == "hybrid"


def test_every_column_of_the_metrics_has_a_row(tmp_path: Path) -> None:
    _, _, section = PAGE.partition("\n## The metrics\n")
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    listed = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    corpus = write_corpus(str(tmp_path / "store"), num_images=8)
    recipe = Recipe(name="page", batch_size=4, max_steps=2, num_heads=2, image_projection=True, window="full")
    validate = validator(corpus.manifest, "dev", *corpus.features())
    corpus.trainer(recipe, str(tmp_path / "run"), validate=validate).fit()
    written = {name for line in read_metrics(Storage(str(tmp_path / "run"))) for name in line}
    hybrid = Recipe(name="page", head="hybrid-plus", text_weight=1.0)
    parts = {f"{branch}_{target}_loss" for branch in hybrid.branch_weights for target in hybrid.target_weights}
    assert listed == written | parts | {"length_loss"}
