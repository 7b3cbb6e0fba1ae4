import itertools

import pytest

from speechclip.training.blueprint import count_trainable
from speechclip.training.recipe import load_recipe, recipe_names

SIZES, HEADS = ("base", "large"), ("parallel", "cascaded", "hybrid", "cascaded-plus", "hybrid-plus")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # The poster's 2.8, 7.5, 13.4 and 6.1 million (docs/model.md, "Model sizes").
        ("base-cascaded-flickr8k", 2_771_981),
        ("base-parallel-flickr8k", 7_483_917),
        ("large-parallel-flickr8k", 13_386_522),
        ("large-cascaded-flickr8k", 6_057_754),
    ],
)
def test_a_published_recipe_trains_as_many_numbers_as_the_published_model(name: str, count: int):
    assert count_trainable(load_recipe(name)) == count


def test_every_published_head_has_a_recipe_and_a_count():
    published = {"-".join(parts) for parts in itertools.product(SIZES, HEADS, ("flickr8k", "spokencoco"))}
    assert published <= set(recipe_names())
    for name in published:
        recipe = load_recipe(name)
        assert name.startswith(f"{recipe.encoders}-{recipe.head}-")
        # More than the least published head, less than two layers of the largest encoder.
        assert 2_771_981 <= (count_trainable(recipe) or 0) < 30_000_000


def test_a_recipe_for_any_encoders_has_no_fixed_number_of_parameters():
    assert count_trainable(load_recipe("demo-parallel")) is None


def test_the_number_of_parameters_does_not_depend_on_the_corpus():
    for size, head in itertools.product(SIZES, ("parallel", "cascaded", "cascaded-plus")):
        counts = {count_trainable(load_recipe(f"{size}-{head}-{corpus}")) for corpus in ("flickr8k", "spokencoco")}
        assert len(counts) == 1
