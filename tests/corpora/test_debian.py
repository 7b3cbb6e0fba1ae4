from pathlib import Path

import pytest

from speechclip.corpora import debian
from speechclip.corpora.debian import fetch_stamps
from speechclip.errors import InvalidInput


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with scripts instead of apt and dpkg-deb, so that no test downloads 161 MB."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    program(
        folder, "apt-get", 'echo "$@" >> "$0.log"; case "$*" in *download*) touch tuxpaint-stamps-default_1.deb;; esac'
    )
    program(folder, "dpkg-deb", 'd="$3/usr/share/tuxpaint/stamps/animals"; mkdir -p $d; touch $d/a.png $d/a_desc.ogg')
    monkeypatch.setattr(debian, "MIN_PICTURES", 1)
    monkeypatch.setattr(debian, "MIN_DESCRIPTIONS", 1)
    return folder


def test_the_package_is_fetched_once_and_nothing_else_is_left(programs: Path, tmp_path: Path) -> None:
    folder = fetch_stamps(tmp_path / "cache")
    assert folder == fetch_stamps(tmp_path / "cache")
    assert sorted(path.name for path in (folder / "animals").iterdir()) == ["a.png", "a_desc.ogg"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["stamps"]
    calls = (programs / "apt-get.log").read_text().splitlines()
    assert len(calls) == 2
    assert all(f"Dir::State={tmp_path}/cache/" in call for call in calls)


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("apt-get", "echo 'E: no network' >&2; exit 100", "apt-get failed .E: no network.*ingest tuxpaint"),
        ("apt-get", "true", "downloaded no tuxpaint-stamps-default"),
        ("dpkg-deb", "exit 2", "dpkg-deb failed .exit status 2"),
        ("dpkg-deb", "true", "has 0 pictures and 0 spoken captions, expected at least 1 and 1"),
    ],
)
def test_a_failure_says_how_to_go_on_and_the_next_try_is_clean(
    programs: Path, tmp_path: Path, name: str, script: str, message: str
) -> None:
    whole = (programs / name).read_text()
    program(programs, name, script)
    with pytest.raises(InvalidInput, match=message):
        fetch_stamps(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (programs / name).write_text(whole)
    assert fetch_stamps(tmp_path / "cache").is_dir()


def test_a_machine_without_apt_gets_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"apt-get is not on this machine's PATH.*synthetic corpus"):
        fetch_stamps(tmp_path / "cache")
