from pathlib import Path

import pytest

from speechclip.errors import InvalidInput
from speechclip.training.recipe import Recipe, load_recipe


def test_the_packages_recipes_have_the_settings_of_the_paper():
    base = load_recipe("base-parallel-flickr8k")
    assert (base.batch_size, base.max_steps, base.warmup_steps, base.learning_rate) == (256, 50_000, 5_000, 1e-4)
    assert (base.normalize_states, base.is_temperature_learnable) == ("none", False)
    large = load_recipe("large-parallel-flickr8k")
    assert (large.normalize_states, large.is_temperature_learnable) == ("s3prl", True)
    assert load_recipe("demo-parallel").image_projection


def test_the_rate_rises_to_the_end_of_the_warm_up_and_falls_to_the_final_factor():
    recipe = load_recipe("base-parallel-flickr8k")
    assert recipe.learning_rate_at(0) == pytest.approx(1e-4 / 5000)
    assert recipe.learning_rate_at(2499) == pytest.approx(0.5e-4)
    assert recipe.learning_rate_at(4999) == pytest.approx(1e-4)
    assert recipe.learning_rate_at(27_499) == pytest.approx(1e-4 * (1 + 1e-4) / 2)
    assert recipe.learning_rate_at(49_999) == pytest.approx(1e-8)
    assert Recipe(name="x", warmup_steps=0, max_steps=1).learning_rate_at(0) > 0


def test_overrides_may_be_text_and_replace_single_keys():
    recipe = load_recipe(
        "demo-parallel",
        {"max_steps": "50", "learning_rate": "1e-4", "image_projection": "false", "embedding_width": None},
    )
    assert (recipe.max_steps, recipe.learning_rate, recipe.image_projection) == (50, 1e-4, False)
    assert (recipe.batch_size, recipe.embedding_width) == (load_recipe("demo-parallel").batch_size, None)


def test_a_recipe_file_gives_the_recipe_its_name(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("max_steps: 7\nlearning_rate: 1e-3\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.name, recipe.max_steps, recipe.learning_rate) == ("mine", 7, 1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_step": "5"}, "no such key max_step;"),
        ({"window": "sometimes"}, r"window"),
        ({"batch_size": "many"}, r"batch_size"),
        ({"batch_size": 1}, "batch_size is 1, below 2"),
        ({"max_steps": 0}, "max_steps is 0, below 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"num_heads": 0}, "num_heads is 0, below 1"),
        ({"image_weight": 0}, "image_weight and text_weight are both 0"),
        ({"parallel_weight": 0}, "no branch has a weight"),
        ({"head": "cascaded"}, "image_projection must be false"),
        ({"head": "cascade"}, "head"),
        ({"precision": "fp8"}, "precision"),
        ({"temperature": "nan"}, "temperature is nan"),
        ({"learning_rate": "inf"}, "learning_rate is inf"),
        ({"image_weight": "nan"}, "image_weight is nan"),
        ({"final_factor": "nan"}, "final_factor is nan"),
        ({"final_factor": -0.1}, r"final_factor is -0\.1, below 0"),
        ({"weight_decay": -1e-6}, "weight_decay is -1e-06, below 0"),
        ({"embedding_width": 0}, "embedding_width is 0, below 1"),
        ({"keyword_projection": [64, 0]}, "keyword_projection has a width of 0, below 1"),
        ({"parallel_projection": [-3]}, "parallel_projection has a width of -3, below 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808, above"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(overrides, message):
    with pytest.raises(InvalidInput, match=message):
        load_recipe("demo-parallel", overrides)


def test_a_missing_or_broken_recipe_is_an_error(tmp_path: Path):
    with pytest.raises(InvalidInput, match="such as base-parallel-flickr8k"):
        load_recipe("base-paralel-flickr")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InvalidInput, match="a mapping"):
        load_recipe(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InvalidInput, match="can't be read"):
        load_recipe(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1: 2\n", "no such key 1;"),
        (b"~: 2\nfoo: 3\n", "no such key None, foo;"),
        (b"name: caf\xe9\n", "can't be read as a recipe"),
        (b"head: " + b"[" * 20_000, "can't be read as a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        load_recipe(str(tmp_path / "odd.yaml"))


def test_a_branch_that_a_head_lacks_has_no_weight():
    weights = {name: load_recipe(f"large-{name}-flickr8k").branch_weights for name in ("parallel", "cascaded-plus")}
    assert weights == {"parallel": {"parallel": 1.0}, "cascaded-plus": {"cascaded": 1.0}}
    assert load_recipe("large-hybrid-plus-flickr8k").branch_weights == {"parallel": 0.5, "cascaded": 1.5}


def test_only_targets_with_a_weight_are_used():
    assert load_recipe("base-parallel-flickr8k").target_weights == {"image": 1.0}
    supervised = load_recipe("base-parallel-flickr8k", {"image_weight": 0, "text_weight": 1})
    assert supervised.target_weights == {"text": 1.0}
