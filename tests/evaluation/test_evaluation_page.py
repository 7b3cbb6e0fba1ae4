"""docs/evaluation.md names every key of report.json, and no other."""

import re
from pathlib import Path

import pytest

from speechclip.evaluation.keywords import HitRate, KeywordReport
from speechclip.evaluation.published import PublishedScores
from speechclip.evaluation.recall import BothDirections, RetrievalReport
from speechclip.evaluation.report import EvaluationReport, TextReport
from speechclip.records import Record

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
_, _, SECTION = PAGE.partition("\n## Keys of `report.json`\n")
TABLES = [
    {name for row in table.strip().splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    for table in re.findall(r"^\| key \|.*?(?:\n\n|\Z)", SECTION, re.DOTALL | re.MULTILINE)
]
RECORDS: list[type[Record]] = [EvaluationReport, RetrievalReport, TextReport, KeywordReport, HitRate]


def test_there_is_a_table_for_each_record() -> None:
    assert len(TABLES) == len(RECORDS)


@pytest.mark.parametrize(("keys", "record"), list(zip(TABLES, RECORDS, strict=False)))
def test_a_table_has_the_keys_of_its_record(keys: set[str], record: type[Record]) -> None:
    assert keys == set(record.__struct_fields__)


@pytest.mark.parametrize("record", [BothDirections, PublishedScores])
def test_the_keys_of_records_without_a_table_are_named(record: type[Record]) -> None:
    assert set(record.__struct_fields__) <= set(re.findall(r"`(\w+)`", SECTION))
