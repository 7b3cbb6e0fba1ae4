"""The options that several commands share, and the settings they make."""

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
        "--manifest", metavar="FILE", help="The manifest, as `speechclip ingest` wrote it (path or s3://)."
    ),
    "store": click.option("--store", metavar="DIR", help="The feature store: a folder or s3://bucket/prefix."),
    "run": click.option("--run", metavar="DIR", help="The run folder of a trained head (path or s3://)."),
    "speech": click.option("--speech", metavar="SPEC", help="Speech encoder, as hubert:facebook/hubert-base-ls960."),
    "image": click.option("--image", metavar="SPEC", help="Image encoder, as clip:ViT-B-32/openai."),
    "text": click.option("--text", metavar="SPEC", help="Text encoder, as clip:ViT-B-32/openai."),
    "layers": click.option(
        "--layers", metavar="N,N", callback=lambda *args: _layers(args[2]), help="Hidden states to keep; default all."
    ),
    "codec": click.option("--codec", type=click.Choice(["fp16", "fp32"]), help="How numbers are stored."),
    "window": click.option(
        "--window",
        metavar="full|crops=K",
        help="What of an utterance is encoded: all, or K crops of 6.4 s of a longer one.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Only JSON on stdout."),
    "version": click.option(
        "--version",
        "version",
        metavar="N|TAG",
        help="Pin a catalog version, by number or tag; default the newest.",
    ),
}


def settings_options(*names: str, sets_recipe: bool = False) -> Callable[[Command], Command]:
    """Add `-c`, `--set` and the named options; the command receives `settings` and what is no setting.

    With `sets_recipe`, a `--set` key that a recipe has, or that is no setting, is one of the recipe's.
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
        keys = "the config or of the recipe" if sets_recipe else "the config"
        wrapped = click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"Set any key of {keys}."
        )(wrapped)
        wrapped = click.option(
            "-c", "--config", metavar="FILE", help="Settings; default ./ray_config.yaml if it is there."
        )(wrapped)
        result: Command = wrapped
        return result

    return decorate


def in_ray_job() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_throw_away_paths(settings: Settings) -> None:
    """A relative path under `ray job submit --working-dir` would lie in Ray's throw-away copy of that folder."""
    if not in_ray_job():
        return
    for name in ("store", "run"):
        value = getattr(settings, name)
        if value is not None and Path(value).is_relative_to(Path.cwd()):
            raise InvalidInput(
                f"{name} {value!r} lies in the throw-away copy of the working directory that a Ray job runs in; "
                "give a whole path that all nodes share, or s3://"
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
