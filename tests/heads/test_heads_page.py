"""docs/heads.md gives the number of trained parameters of every published recipe."""

import re
from pathlib import Path

from speechclip.training.blueprint import count_trainable
from speechclip.training.recipe import load_recipe, recipe_names

PAGE = (Path(__file__).parents[2] / "docs" / "heads.md").read_text()
ROW = re.compile(
    r"^\| `\{base,large\}-(?P<head>[\w-]+)-(?P<corpora>[\w{},]+)` \| (?P<base>[\d,]+) \| (?P<large>[\d,]+) \|$", re.M
)


def test_the_page_has_the_number_of_trained_parameters_of_every_published_recipe():
    found = {
        f"{size}-{row['head']}-{corpus}": int(row[size].replace(",", ""))
        for row in ROW.finditer(PAGE)
        for corpus in row["corpora"].strip("{}").split(",")
        for size in ("base", "large")
    }
    counts = {name: count_trainable(load_recipe(name)) for name in recipe_names()}
    assert found == {name: count for name, count in counts.items() if count is not None}
