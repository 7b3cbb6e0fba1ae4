"""The image, as far as it can be checked where no container can be built."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import project_rules

PROJECT = Path(__file__).parent.parent.parent
DOCKERFILE = PROJECT / "cluster" / "Dockerfile"


def lint(file: Path) -> str:
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([hadolint, file], capture_output=True, text=True, timeout=60).stdout


def test_hadolint_has_nothing_to_say() -> None:
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("python:3.11.14-slim-bookworm AS build", "python AS build", "DL3006"),
        ("--no-cache-dir uv==", "--no-cache-dir uv --pre-", "DL3013"),
        ("WORKDIR /opt/speechclip\nCOPY pipelines", "WORKDIR opt\nCOPY pipelines", "DL3000"),
        ("USER 1000:1000", "USER root", "DL3002"),
    ],
)
def test_hadolint_sees_mistakes(tmp_path: Path, good: str, bad: str, rule: str) -> None:
    broken = tmp_path / "Dockerfile"
    text = DOCKERFILE.read_text()
    assert good in text
    broken.write_text(text.replace(good, bad))
    assert rule in lint(broken)


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    # A name would not do: `runAsNonRoot` is checked by number.
    assert re.findall(r"^USER (.*)$", DOCKERFILE.read_text(), re.MULTILINE) == ["1000:1000"]


def test_it_has_the_programs_that_the_project_and_ray_up_call() -> None:
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends (.*) &&", DOCKERFILE.read_text())
    assert set(installed.split()) == {"ffmpeg", "openssh-client", "rsync"}


def test_every_file_that_the_image_copies_exists_and_reaches_the_build() -> None:
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    copied = {name for line in lines for name in line.split()[:-1]}
    assert copied == allowed
    assert all((PROJECT / name).exists() for name in copied)


def test_the_tag_in_the_readme_and_the_dockerfile_is_the_manifests() -> None:
    tag = f"speechclip:0.1.0-ray{project_rules.locked('ray')}"
    assert tag in DOCKERFILE.read_text()
    assert tag in (PROJECT / "cluster" / "README.md").read_text()


def test_the_lock_gives_the_image_hashes_for_every_package_it_installs() -> None:
    packages = re.split(r"\n(?=[a-z])", (PROJECT / "requirements.lock").read_text())
    named = [package for package in packages if re.match(r"[a-z0-9._-]+(\[.*\])?==", package)]
    assert len(named) > 100
    assert [package for package in named if "--hash=sha256:" not in package] == []
