"""stderr holds sentences for people, or one JSON object a line for machines."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging
from speechclip import logs
from speechclip.cli.terminal import rewrite, say
logs.configure({format!r}, verbose=False)
say("two files\\n", files=2)
rewrite("half", progress={{"done": 1}})
logging.getLogger("speechclip.store").warning("a %s", "warning")
logging.getLogger("speechclip.store").info("not asked for")
"""


def stderr_of(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=log_format)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_people_read_sentences() -> None:
    assert stderr_of("text") == ["two files\\n", "half", "a warning"]


def test_machines_read_an_object_a_line() -> None:
    said, told, warned = map(json.loads, stderr_of("json"))
    assert (said["message"], said["level"], said["files"]) == ("two files\n", "INFO", 2)
    assert (told["message"], told["progress"]) == ("half", {"done": 1})
    assert (warned["message"], warned["level"], warned["logger"]) == ("a warning", "WARNING", "speechclip.store")
    assert said["time"].endswith("Z")


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_error_that_ends_a_command_is_json_too(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--log-format", "json"] if way == "option" else []
    if way == "environment":
        monkeypatch.setenv("SPEECHCLIP_LOG_FORMAT", "json")
    command = [sys.executable, "-m", "speechclip", *options, "query", "--run", "nowhere", "--store", "x", "--text", "y"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["exit_code"]) == ("ERROR", 1)
    assert "nowhere" in line["message"]
