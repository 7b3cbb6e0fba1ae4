"""What an evaluation found: one record, as JSON and as tables beside the published figures.

Source: docs/model.md, "Published results".
"""

import io
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from speechclip.evaluation.keywords import HitRate, KeywordReport
from speechclip.evaluation.published import Measure, PublishedScores
from speechclip.evaluation.recall import CUTOFFS, RetrievalReport, TwoWays
from speechclip.records import Record
from speechclip.retrieval.embeddings import BRANCHES, Branch
from speechclip.storage import Storage

Candidates = Literal["split", "all"]
# As many slots as the published heads have; a head with more shows the rest in the JSON alone.
SHOWN_SLOTS = 8
TEXT_WIDTH = 200


class TextReport(Record, frozen=True):
    """Zero-shot retrieval of captions by the embedding of `branch`, among the vectors of one text feature set.

    The captions compete a row for each utterance, not once for each text. `num_missing` utterances could not ask:
    no caption of their image is stored.
    """

    feature_set: str
    branch: Branch
    num_missing: int
    retrieval: TwoWays


class EvaluationReport(Record, frozen=True):
    """What one run reaches on one split. `untrained` names the features whose encoder has no trained weights.

    `num_missing` utterances of the split lack a stored feature and were left out. `retrieval` has each branch of the
    head against the images; the parallel one, where there is one, stands for the utterance. `published` are the rows of
    the recipe's corpus, `caveats` say why they can't be compared with this run, `notes` what is left out and why.
    `window` is what of each utterance was judged.
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
    retrieval: dict[Branch, TwoWays]
    untrained: tuple[str, ...]
    text: TextReport | None = None
    keywords: KeywordReport | None = None
    published: tuple[PublishedScores, ...] = ()
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    window: str = "full"

    @property
    def main(self) -> TwoWays:
        """The retrieval of images by the embedding that stands for an utterance."""
        return next(self.retrieval[branch] for branch in BRANCHES if branch in self.retrieval)

    def to_tables(self) -> list[Table]:
        """The figures for a terminal, in percent, a table for each question."""
        tables = [self._retrieval()]
        if self.published:
            tables.append(self._recalls("speech-image", self.retrieval))
            if self.text is not None:
                tables.append(self._recalls("speech-text", {self.text.branch: self.text.retrieval}))
        if self.keywords is not None:
            tables.append(_keyword_table(self.keywords, self._published("keywords")))
        return tables

    def to_text(self) -> str:
        """The tables, caveats and notes as plain text."""
        page = Console(file=io.StringIO(), width=TEXT_WIDTH, highlight=False, markup=False, no_color=True)
        for table in self.to_tables():
            page.print(table)
        for line in self.closing_lines():
            page.print(line)
        assert isinstance(page.file, io.StringIO)
        return page.file.getvalue()

    def closing_lines(self) -> Iterator[str]:
        """What must be known beside the tables."""
        if self.untrained:
            yield (
                f"UNTRAINED encoders with random weights: {', '.join(self.untrained)}. "
                "These figures show that the road works, and nothing about SpeechCLIP."
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

    def _recalls(self, measure: Measure, found: dict[Branch, TwoWays]) -> Table:
        """This run's recalls under the published ones."""
        other = "image" if measure == "speech-image" else "text"
        heads = [f"to {place} R@{k}" for place in (other, "speech") for k in CUTOFFS]
        table = _table(
            f"{measure} retrieval beside what is published, recall in %",
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
    """`report.json` and `report.txt` in a folder, local or `s3://`, in place of older ones."""
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
