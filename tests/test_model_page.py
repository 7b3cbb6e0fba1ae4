"""docs/model.md states the same figures and settings as the code."""

import re
from pathlib import Path

import pytest

from speechclip.evaluation.published import PUBLISHED, TEST_POOLS, PublishedScores
from speechclip.training.blueprint import PUBLISHED_SIZES, count_trainable
from speechclip.training.recipe import Recipe, load_recipe

PAGE = (Path(__file__).parent.parent / "docs" / "model.md").read_text()
# The short names of SpeechCLIP+'s heads on the page, and of its corpora.
HEADS = {"h": "hybrid", "c+": "cascaded-plus", "h+": "hybrid-plus"}
CORPORA = {"": "flickr8k", "Flickr8k": "flickr8k", "SpokenCOCO": "spokencoco"}


def table_rows(section: str) -> list[list[str]]:
    """The cells of all table rows in the section of that name, without marks of bold and code."""
    _, _, rest = PAGE.partition(f"\n## {section}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.sub(r"[*`]", "", line).strip("|").split("|")] for line in lines]


def numbers(cells: list[str]) -> tuple[float, ...]:
    return tuple(float(number) for number in re.findall(r"\d+(?:\.\d+)?", " ".join(cells)))


@pytest.mark.parametrize(
    "row", [row for row in PUBLISHED if row.measure != "dev"], ids=lambda row: f"{row.measure} {row.corpus} {row.model}"
)
def test_every_published_row_of_the_code_is_a_row_of_the_page(row: PublishedScores) -> None:
    places = {"speech-image": 2, "speech-text": 2, "keywords": 1}[row.measure]
    stated = [numbers(cells[places:]) for cells in table_rows("Published results")]
    assert row.figures in stated


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.measure == "dev"], ids=lambda row: row.model)
def test_every_dev_figure_of_the_code_is_on_the_page(row: PublishedScores) -> None:
    stated = [numbers([cells[1].replace(f"R@{row.cutoff}", "")]) for cells in table_rows("Published results")]
    assert any(row.figures[0] in figures for figures in stated)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("base-cascaded-flickr8k", "Base cascaded"),
        ("base-parallel-flickr8k", "Base parallel"),
        ("large-parallel-flickr8k", "Large parallel"),
        ("large-cascaded-flickr8k", "Large cascaded, two layers"),
    ],
)
def test_the_page_states_how_many_numbers_a_head_trains(recipe: str, name: str) -> None:
    (count,) = [cells[1] for cells in table_rows("Model sizes") if cells[0] == name]
    assert count == f"{count_trainable(load_recipe(recipe)):,}"


def test_the_page_states_the_widths_of_both_sizes() -> None:
    header, hubert, *_, clip, _ = table_rows("Base and Large")
    for cell, (size, (num_layers, width, joint)) in enumerate(PUBLISHED_SIZES.items(), start=1):
        assert header[cell].lower() == size
        assert hubert[cell].endswith(f"D = {width}, N = {num_layers}")
        assert f"E = {joint}" in clip[cell]


@pytest.mark.parametrize("corpus", TEST_POOLS)
def test_the_page_states_the_size_of_each_test_split(corpus: str) -> None:
    pools = [cells for cells in table_rows("Evaluation protocol") if CORPORA.get(cells[0]) == corpus]
    assert [tuple(int(cell.split()[0].replace(",", "")) for cell in cells[1:]) for cells in pools] == [
        TEST_POOLS[corpus]  # type: ignore[index]
    ]


def settings_of(recipe: Recipe) -> tuple[str, str, int | None, str, str]:
    """A recipe in the words of the page's table."""
    weights = recipe.branch_weights
    return (
        f"{recipe.batch_size} x {recipe.accumulation}".removesuffix(" x 1"),
        f"{weights.get('parallel', 0):g} / {weights['cascaded']:g}",
        recipe.num_heads,
        "learned" if recipe.is_temperature_learnable else "fixed 0.07",
        "no" if recipe.normalize_states == "none" else recipe.normalize_states,
    )


def test_the_settings_of_speechclip_plus_are_those_of_the_recipes() -> None:
    rows = [cells for cells in table_rows("Training settings") if cells[0].rpartition(" ")[2] in HEADS]
    for name, batch, weights, heads, temperature, normalised in rows:
        size, *corpus, head = name.split()
        recipe = load_recipe(f"{size.lower()}-{HEADS[head]}-{CORPORA[' '.join(corpus)]}")
        assert (batch, weights, int(heads[0]), temperature, normalised) == settings_of(recipe), name
        assert ("transformer" in heads) == (recipe.block == "transformer")
    assert len(rows) == 9
