"""The options that several commands share, and the settings that they give."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from speechclip.config import Settings, load_settings
from speechclip.errors import InvalidInput
from speechclip.training.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS: dict[str, Callable[[Command], Command]] = {
    "manifest": click.option(
        "--manifest", metavar="FILE", help="The manifest that `speechclip ingest` wrote: a path or s3://."
    ),
    "store": click.option("--store", metavar="DIR", help="The feature store: a folder or s3://bucket/prefix."),
    "run": click.option("--run", metavar="DIR", help="The folder of a trained head: a path or s3://."),
    "speech": click.option(
        "--speech", metavar="ENCODER", help="The speech encoder, such as hubert:facebook/hubert-base-ls960."
    ),
    "image": click.option("--image", metavar="ENCODER", help="The image encoder, such as clip:ViT-B-32/openai."),
    "text": click.option("--text", metavar="ENCODER", help="The text encoder, such as clip:ViT-B-32/openai."),
    "layers": click.option(
        "--layers",
        metavar="N,N",
        callback=lambda *args: _layers(args[2]),
        help="The hidden states to keep, such as 0,6,12. Default: all.",
    ),
    "codec": click.option(
        "--codec", type=click.Choice(["fp16", "fp32"]), help="How to store the numbers. Default: fp16."
    ),
    "window": click.option(
        "--window",
        metavar="full|crops=K",
        help="Encode whole utterances, or K crops of 6.4 s of each longer one. Default: full.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print only JSON on stdout."),
    "version": click.option(
        "--version",
        "version",
        metavar="N|TAG",
        help="Read this catalog version, by number or tag. Default: the newest.",
    ),
}


def settings_options(*names: str, sets_recipe: bool = False) -> Callable[[Command], Command]:
    """Add `-c`, `--set` and the named options to a command. The command gets `settings` and the other options.

    With `sets_recipe`, `--set` also changes the recipe: every key that is a recipe's, or that is no setting.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapper(config: str | None, overrides: tuple[str, ...], **options: Any) -> Any:
            known: dict[str, Any] = {
                name: options.pop(name) for name in list(options) if name in Settings.__struct_fields__
            }
            if sets_recipe:
                overrides = tuple(map(_to_recipe, overrides))
            settings = load_settings(config, known, overrides)
            refuse_throw_away_paths(settings)
            return function(settings=settings, **options)

        wrapped: Any = wrapper
        for name in reversed(names):
            wrapped = OPTIONS[name](wrapped)
        keys = "the settings or of the recipe" if sets_recipe else "the settings"
        wrapped = click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"Set one key of {keys}. Can be repeated."
        )(wrapped)
        wrapped = click.option(
            "-c", "--config", metavar="FILE", help="The file with settings. Default: ./ray_config.yaml if it exists."
        )(wrapped)
        result: Command = wrapped
        return result

    return decorate


def in_ray_job() -> bool:
    """True if `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_throw_away_paths(settings: Settings) -> None:
    """Raise `InvalidInput` for a path inside the copy of the working directory that Ray deletes after a job."""
    if not in_ray_job():
        return
    for name in ("store", "run"):
        value = getattr(settings, name)
        if value is not None and Path(value).is_relative_to(Path.cwd()):
            raise InvalidInput(
                f"{name} {value!r} is inside the copy of the working directory that Ray deletes after the job",
                "give an absolute path that all nodes share, or s3://",
            )


def _to_recipe(override: str) -> str:
    name = override.partition("=")[0].partition(".")[0]
    is_setting = name in Settings.__struct_fields__ and name not in Recipe.__struct_fields__
    return override if is_setting else f"recipe_overrides.{override}"


def _layers(value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,6,12") from None
