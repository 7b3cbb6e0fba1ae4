"""The result of an evaluation, as a record, as JSON and as tables. docs/evaluation.md explains every figure."""

import io
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from speechclip.evaluation.keywords import HitRate, KeywordReport
from speechclip.evaluation.published import Measure, PublishedScores
from speechclip.evaluation.recall import CUTOFFS, BothDirections, RetrievalReport
from speechclip.records import Record
from speechclip.retrieval.embeddings import BRANCHES, Branch
from speechclip.storage import Storage

Candidates = Literal["split", "all"]
# The published heads have eight slots. The figures of further slots are in the JSON only.
SHOWN_SLOTS = 8
TEXT_WIDTH = 200


class TextReport(Record, frozen=True):
    """Zero-shot retrieval between utterances and captions, by the embeddings of `branch`.

    `feature_set` has the vectors of the captions. Each utterance brings its own caption as a candidate, so a text that
    occurs twice competes twice. `num_missing` utterances are no queries, because no caption of their image is stored.
    """

    feature_set: str
    branch: Branch
    num_missing: int
    retrieval: BothDirections


class EvaluationReport(Record, frozen=True):
    """The figures of one run on one split.

    `num_missing` utterances of the split lack a stored feature and were left out. `retrieval` has the figures of each
    branch of the head among the images. `untrained` has the fingerprints whose encoder has random weights. `published`
    are the published rows on the recipe's corpus, and `caveats` the reasons why this run can't be compared with them.
    `notes` say what the report lacks and why. `window` is the part of each utterance that was judged.
    """

    manifest: str
    catalog_version: int
    speech: str
    image: str
    recipe: str
    head_step: int
    split: str
    candidates: Candidates
    num_utterances: int
    num_missing: int
    retrieval: dict[Branch, BothDirections]
    untrained: tuple[str, ...]
    text: TextReport | None = None
    keywords: KeywordReport | None = None
    published: tuple[PublishedScores, ...] = ()
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    window: str = "full"

    @property
    def main(self) -> BothDirections:
        """The figures of the branch that gives the embedding of an utterance: parallel if the head has it."""
        return next(self.retrieval[branch] for branch in BRANCHES if branch in self.retrieval)

    def to_tables(self) -> list[Table]:
        """Tables for a terminal, with figures in percent."""
        tables = [self._retrieval()]
        if self.published:
            tables.append(self._recalls("speech-image", self.retrieval))
            if self.text is not None:
                tables.append(self._recalls("speech-text", {self.text.branch: self.text.retrieval}))
        if self.keywords is not None:
            tables.append(_keyword_table(self.keywords, self._published("keywords")))
        return tables

    def to_text(self) -> str:
        """The tables and the closing lines as plain text."""
        page = Console(file=io.StringIO(), width=TEXT_WIDTH, highlight=False, markup=False, no_color=True)
        for table in self.to_tables():
            page.print(table)
        for line in self.closing_lines():
            page.print(line)
        assert isinstance(page.file, io.StringIO)
        return page.file.getvalue()

    def closing_lines(self) -> Iterator[str]:
        """Warnings and notes, to be printed after the tables."""
        if self.untrained:
            yield (
                f"UNTRAINED encoders with random weights: {', '.join(self.untrained)}. "
                "These figures show that the pipeline works. They say nothing about SpeechCLIP's quality."
            )
        if self.published and self.caveats:
            yield f"NOT COMPARABLE with the published rows: {'; '.join(self.caveats)}."
        yield from (f"note: {note}" for note in self.notes)

    def _published(self, measure: Measure) -> list[PublishedScores]:
        return [row for row in self.published if row.measure == measure]

    def _retrieval(self) -> Table:
        missing = f"{self.num_utterances} utterances ({self.num_missing} missing)"
        heads = (
            "direction",
            "queries",
            "candidates",
            *(f"R@{k} [95 %], chance" for k in CUTOFFS),
            "median rank, chance",
        )
        window = "" if self.window == "full" else f", window {self.window}"
        table = _table(f"{self.split}: {missing}, recipe {self.recipe}{window}", *heads)
        rows = [(f"{branch} speech", "image", both) for branch, both in self.retrieval.items()]
        if self.text is not None:
            rows.append((f"{self.text.branch} speech", "text", self.text.retrieval))
        for speech, other, both in rows:
            table.add_row(f"{speech} to {other}", *_cells(both.from_speech))
            table.add_row(f"{other} to {speech}", *_cells(both.to_speech))
            means = (_with_interval(both.mean_recall[k], both.mean_interval[k]) for k in CUTOFFS)
            table.add_row("mean of both", "", "", *means, "", end_section=True)
        return table

    def _recalls(self, measure: Measure, found: dict[Branch, BothDirections]) -> Table:
        """A table with the published recalls, this run's and chance."""
        other = "image" if measure == "speech-image" else "text"
        heads = [f"to {place} R@{k}" for place in (other, "speech") for k in CUTOFFS]
        table = _table(
            f"{measure} retrieval beside published figures, recall in %",
            "model",
            *heads,
            *(f"mean R@{k}" for k in CUTOFFS),
        )
        for row in self._published(measure):
            means = ((row.figures[place] + row.figures[place + 3]) / 2 for place in range(3))
            table.add_row(f"published: {row.model}", *(f"{figure:.2f}" for figure in (*row.figures, *means)))
        if measure == "speech-image" and self.split == "dev":
            for row in self._published("dev"):
                means_shown = [f"{row.figures[0]:.2f}" if k == row.cutoff else "" for k in CUTOFFS]
                table.add_row(f"published, dev: {row.model}", *[""] * 6, *means_shown)
        table.add_section()
        for branch, both in found.items():
            sides = (both.from_speech, both.to_speech)
            shares = [side.recall[k] for side in sides for k in CUTOFFS] + [both.mean_recall[k] for k in CUTOFFS]
            table.add_row(f"this run, {branch}", *(f"{100 * share:.2f}" for share in shares))
        chances = [side.chance[k] for side in sides for k in CUTOFFS]
        chances += [(chances[place] + chances[place + 3]) / 2 for place in range(3)]
        table.add_row("chance", *(f"{100 * share:.2f}" for share in chances))
        return table


def write_report(uri: str, report: EvaluationReport) -> None:
    """Write `report.json` and `report.txt` to a folder, local or `s3://`. Older ones are replaced."""
    folder = Storage(uri)
    folder.replace("report.json", msgspec.json.format(msgspec.json.encode(report)))
    folder.replace("report.txt", report.to_text().encode())


def _keyword_table(found: KeywordReport, published: Sequence[PublishedScores]) -> Table:
    perplexities = f"code perplexity {found.code_perplexity:.1f}, prob perplexity {found.prob_perplexity:.1f}"
    table = _table(
        f"Keywords of {found.num_captioned} captioned utterances: hit rate, %. {found.num_distinct} of "
        f"{found.vocabulary_size} tokens used, {perplexities}",
        "near, among",
        *(f"kw{slot}" for slot in range(1, SHOWN_SLOTS + 1)),
        "average [95 %]",
        "other captions",
    )
    for row in published:
        table.add_row(f"published: {row.model}", *(f"{figure:.1f}" for figure in row.figures), "")
    table.add_section()
    for rate in found.hit_rates:
        shares = [f"{100 * share:.1f}" for share in rate.per_slot[:SHOWN_SLOTS]]
        average = _with_interval(rate.average, rate.interval)
        padding = [""] * (SHOWN_SLOTS - len(shares))
        table.add_row(_variant(rate), *shares, *padding, average, f"{100 * rate.elsewhere:.1f}")
    return table


def _variant(rate: HitRate) -> str:
    near = "chosen token" if rate.neighbours == "token" else "query z_k"
    words = "caption and special tokens (literal)" if rate.gold == "literal" else "caption's own tokens"
    return f"this run: {near}, {words}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    low, high = (100 * bound for bound in interval)
    return f"{100 * share:.1f} [{low:.1f}, {high:.1f}]"


def _cells(report: RetrievalReport) -> list[str]:
    recalls = [f"{_with_interval(report.recall[k], report.interval[k])}, {100 * report.chance[k]:.2f}" for k in CUTOFFS]
    ranks = f"{report.median_rank:.0f}, {report.chance_median_rank:.0f}"
    return [str(report.num_queries), str(report.num_candidates), *recalls, ranks]
