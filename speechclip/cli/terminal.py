"""What a person sees in the terminal: tables, sizes, times and the line of progress."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from speechclip import logs


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
