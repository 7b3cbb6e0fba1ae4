"""What a person sees in the terminal: tables, sizes, times and the line of progress."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from speechclip import logs


def console() -> Console:
    """The console for results: stdout."""
    return Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def say(sentence: str, **fields: Any) -> None:
    """Print one line on stderr. With `--log-format json` the line is a JSON object that also holds `fields`."""
    if logs.is_json():
        logs.log(sentence, **fields)
    else:
        click.echo(printable(sentence), err=True)


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file's name cannot move the cursor or break a line."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def note_untrained(fingerprints: Sequence[str], meaning: str) -> None:
    """Print one line that names the feature sets whose encoder has random weights, if there are any."""
    if fingerprints:
        names = " and ".join(filter(None, (", ".join(fingerprints[:-1]), fingerprints[-1])))
        say(f"note: {names} {'is' if len(fingerprints) == 1 else 'are'} UNTRAINED (random weights): {meaning}")


def table(*columns: str, figures: Sequence[str] = ()) -> Table:
    """An empty table with these columns. Those named in `figures` are aligned to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in figures else "left", overflow="fold")
    return made


def show(filled: Table, otherwise: str) -> None:
    """Print the table, or the sentence `otherwise` if it has no row."""
    if filled.row_count:
        console().print(filled)
    else:
        say(otherwise)


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 file`, `2,300 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: float) -> str:
    """A size in powers of ten: `1.3 GB`."""
    return decimal(round(count))


def human_seconds(seconds: float) -> str:
    """A duration: `42 s`, `3 min 20 s` or `5 h 10 min`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


class ProgressLine:
    """Rate and time left on stderr: one line that changes on a terminal, a new line every ten seconds elsewhere."""

    def __init__(self, total: float, what: str) -> None:
        self.total, self.what = total, what
        self._started = time.monotonic()
        self._said = self._started

    def to(self, done: float) -> None:
        """Show that `done` of the total is done."""
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
    """Print a line. On a terminal it replaces the last one."""
    if sys.stderr.isatty() and not logs.is_json():
        click.echo(f"\r{line}\x1b[K", err=True, nl=is_end)
    else:
        say(line, **fields)


def progress_line(what: str, unit: float = 1) -> Callable[[float, float], None]:
    """A function of `done` and `total` that shows them in units of `what`, for example bytes as MB by `unit=1e6`."""
    lines: dict[float, ProgressLine] = {}

    def report(done: float, total: float) -> None:
        lines.setdefault(total, ProgressLine(total / unit, what)).to(done / unit)

    return report
