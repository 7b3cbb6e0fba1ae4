"""recipes: the training recipes that come with the package."""

import click
import msgspec

from speechclip.cli.options import OPTIONS
from speechclip.cli.terminal import console, table


@click.command()
@OPTIONS["json"]
def recipes(as_json: bool) -> None:
    """List the recipes and the number of parameters that each one trains. --json prints all their settings."""
    from speechclip.training.blueprint import count_trainable
    from speechclip.training.recipe import load_recipe, recipe_names

    found = {name: load_recipe(name) for name in recipe_names()}
    counts = {name: count_trainable(recipe) for name, recipe in found.items()}
    if as_json:
        settings = {name: msgspec.to_builtins(recipe) for name, recipe in found.items()}
        click.echo(
            msgspec.json.encode(
                {name: kept | {"trainable_parameters": counts[name]} for name, kept in settings.items()}
            )
        )
        return
    shown = table("recipe", "head", "encoders", "trainable", "batch", "steps", figures=["trainable", "batch", "steps"])
    for name, recipe in found.items():
        count = counts[name]
        batch = f"{recipe.batch_size} x {recipe.accumulation}" if recipe.accumulation > 1 else f"{recipe.batch_size}"
        number = "as encoders" if count is None else f"{count:,}"
        shown.add_row(name, recipe.head, recipe.encoders or "any", number, batch, f"{recipe.max_steps:,}")
    console().print(shown)
