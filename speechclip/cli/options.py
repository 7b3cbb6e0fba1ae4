"""What the commands share: options, settings, tables and the line of progress."""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from speechclip import logs
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


def console() -> Console:
    """Where results go."""
    return Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def say(sentence: str, **fields: Any) -> None:
    """A line for the person who waits, on stderr; in a log for machines, with these fields beside it."""
    if logs.is_json():
        logs.log(sentence, **fields)
    else:
        click.echo(printable(sentence), err=True)


def printable(text: str) -> str:
    """The text on one line: what a terminal would obey, such as a newline in a file's name, as its escape."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def note_untrained(fingerprints: Sequence[str], meaning: str) -> None:
    """One line that names the feature sets whose encoder has random weights, if any."""
    if fingerprints:
        names = " and ".join(filter(None, (", ".join(fingerprints[:-1]), fingerprints[-1])))
        say(f"note: {names} {'is' if len(fingerprints) == 1 else 'are'} UNTRAINED (random weights): {meaning}")


def table(*columns: str, figures: Sequence[str] = ()) -> Table:
    """An empty table of these columns; those named in `figures` stand to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in figures else "left", overflow="fold")
    return made


def show(filled: Table, otherwise: str) -> None:
    """Print the table, or say what it means that it is empty."""
    if filled.row_count:
        console().print(filled)
    else:
        say(otherwise)


def counted(count: int, noun: str) -> str:
    """As 1 file, or 2,300 files."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: float) -> str:
    """As 1.3 GB, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """As 42 s, 3 min 20 s or 5 h 10 min."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


class ProgressLine:
    """Rate and time left on stderr: rewritten in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: float, what: str) -> None:
        self.total, self.what = total, what
        self._started = time.monotonic()
        self._said = self._started

    def to(self, done: float) -> None:
        """Count so much as done."""
        now = time.monotonic()
        is_end = done >= self.total
        if now - self._said < (0.2 if sys.stderr.isatty() else 10) and not is_end:
            return
        self._said = now
        rate = done / max(now - self._started, 1e-9)
        left = human_seconds((self.total - done) / rate) if rate > 0 else "unknown"
        pace = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:,.1f}/min"
        rewrite(f"{done:,.0f} of {self.total:,.0f} {self.what}, {pace}, {left} left", is_end=is_end)


def rewrite(line: str, *, is_end: bool = False, **fields: Any) -> None:
    """Put the line in the place of the last one on a terminal, below it elsewhere."""
    if sys.stderr.isatty() and not logs.is_json():
        click.echo(f"\r{line}\x1b[K", err=True, nl=is_end)
    else:
        say(line, **fields)


def progress_line(what: str, unit: float = 1) -> Callable[[float, float], None]:
    """A function that shows `done` of `total`, as many of which make one `what`; a line for each total."""
    lines: dict[float, ProgressLine] = {}

    def report(done: float, total: float) -> None:
        lines.setdefault(total, ProgressLine(total / unit, what)).to(done / unit)

    return report


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
