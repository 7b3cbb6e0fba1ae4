"""cluster/ without a cluster: what API server, operator and our own rules say to every folder, whole and broken.

A real API server, the operator and a container build are not at hand here; `cluster/README.md` says so.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import kuberay_rules, project_rules
from support.kube_manifests import CLUSTER, FOLDERS, Document, groups, of_kind, render
from support.kube_schemas import Crds, core_findings

# No schema at hand: project_rules says what is checked of it instead.
WITHOUT_SCHEMA = {"PodMonitor"}
REMOVED = object()


@pytest.fixture(scope="session")
def crds_folder(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("--crds") or pytestconfig.rootpath / "crds").absolute()


@pytest.fixture(scope="session")
def crds(crds_folder: Path, pytestconfig: pytest.Config) -> Crds:
    """KubeRay's CRDs, which are not ours to keep here.

    Where a folder was named and lacks them, the tests fail; where none was, a newcomer's run goes on without them and
    its summary says what was not checked and how to get it.
    """
    try:
        return Crds(crds_folder)
    except FileNotFoundError as error:
        missing = str(error)
    if pytestconfig.getoption("--crds"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


def api_server(documents: list[Document], crds: Crds) -> Iterator[str]:
    """What the API server would refuse: documents, and the pods that KubeRay would make of them."""
    for document in documents:
        if (document["apiVersion"], document["kind"]) in crds.schemas:
            yield from crds.findings(document)
        elif document["kind"] not in WITHOUT_SCHEMA:
            yield from core_findings(document)
    for job in of_kind(documents, "RayJob"):
        for pod in groups(job):
            made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod.template["spec"]}
            yield from core_findings(made)


def lint(documents: list[Document]) -> list[str]:
    """What the operator would refuse, and what breaks the project's own rules."""
    return [*kuberay_rules.findings(documents), *project_rules.findings(documents)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_server_would_take_every_folder(folder: str, crds: Crds) -> None:
    assert list(api_server(render(folder), crds)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_keeps_the_rules(folder: str) -> None:
    assert lint(render(folder)) == []


def test_every_folder_is_a_job_on_the_base() -> None:
    assert len(FOLDERS) == 8
    for folder in FOLDERS:
        (job,) = of_kind(render(folder), "RayJob")
        assert job["metadata"]["name"] == f"speechclip-{Path(folder).name}"


def test_a_missing_folder_of_crds_fails_and_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"NOT checked.*\n.*ray\.io_rayjobs") as error:
        Crds(tmp_path)
    assert "make test CRDS=FOLDER" in str(error.value)


def test_crds_are_read_as_json_and_as_yaml(tmp_path: Path, crds: Crds, crds_folder: Path) -> None:
    # JSON is YAML, so a copy under the other name must give the same.
    for file in crds_folder.glob("ray.io_*"):
        (tmp_path / file.with_suffix(".yaml").name).write_text(file.read_text())
    assert Crds(tmp_path).schemas == crds.schemas


@dataclass(frozen=True)
class Mistake:
    """One change of a rendered folder, and the words of who sees it; see mistakes.yaml."""

    name: str
    where: dict[str, str]
    path: str
    words: str
    value: Any = REMOVED

    def make(self) -> list[Document]:
        """The folder's documents with the mistake in them."""
        documents = render(self.where.get("folder", "featurize"))
        end = self.where.get("at", "")
        node: Any = next(one for one in of_kind(documents, self.where["kind"]) if one["metadata"]["name"].endswith(end))
        *parents, last = self.steps()
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else node[parent]
        if self.value is REMOVED:
            del node[last]
        else:
            node[last] = deepcopy(self.value)
        return documents

    def steps(self) -> list[Any]:
        """The path as keys and indices."""
        path = self.path
        for short, long in SHORT.items():
            path = path.replace(short, long)
        return [int(part) if part.isdigit() else part.replace("~", ".") for part in path.split(".")]


SHORT = {
    "HEAD": "CLUSTER.headGroupSpec",
    "DECODE": "CLUSTER.workerGroupSpecs.0",
    "GPU": "CLUSTER.workerGroupSpecs.1",
    "CLUSTER": "spec.rayClusterSpec",
    "RAY": "POD.containers.0",
    "POD": "template.spec",
}
PLANTED = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text())
REFUSED, OPERATOR, OURS = (
    [Mistake(**entry) for entry in PLANTED[who]] for who in ("api server", "operator", "project")
)


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda mistake: mistake.name)
def test_the_api_server_would_refuse(mistake: Mistake, crds: Crds) -> None:
    assert any(mistake.words in finding for finding in api_server(mistake.make(), crds))


@pytest.mark.parametrize("mistake", OPERATOR, ids=lambda mistake: mistake.name)
def test_the_operator_would_refuse(mistake: Mistake) -> None:
    assert any(mistake.words in finding for finding in kuberay_rules.findings(mistake.make()))


@pytest.mark.parametrize("mistake", OURS, ids=lambda mistake: mistake.name)
def test_the_project_refuses(mistake: Mistake) -> None:
    assert any(mistake.words in finding for finding in project_rules.findings(mistake.make()))


def test_no_schema_sees_what_the_operator_and_the_project_refuse(crds: Crds) -> None:
    # Else these rules would be in vain: the API server takes all of these.
    for mistake in (OPERATOR[0], OPERATOR[2], OURS[0], OURS[3], OURS[8]):
        assert list(api_server(mistake.make(), crds)) == [], mistake.name


def test_every_file_of_cluster_is_part_of_something_that_is_checked() -> None:
    used = {
        path.parent / name
        for path in CLUSTER.rglob("kustomization.yaml")
        for name in path.read_text().replace("- ", " ").split()
        if name.endswith(".yaml")
    }
    known = {"kustomization.yaml", "ray_config.aws.yaml"}
    assert [path for path in CLUSTER.rglob("*.yaml") if path not in used and path.name not in known] == []


def test_the_readme_counts_the_planted_mistakes() -> None:
    count = len(REFUSED) + len(OPERATOR) + len(OURS)
    assert f"a test puts {count} mistakes into" in (CLUSTER / "README.md").read_text()


def test_the_readmes_one_command_fills_in_every_name(tmp_path: Path) -> None:
    copy = shutil.copytree(CLUSTER, tmp_path / "cluster")
    (command,) = re.findall(r"^    (sed -i .*)$", (CLUSTER / "README.md").read_text(), re.MULTILINE)
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    left = [path for path in copy.rglob("*.yaml") if re.search("BUCKET|ACCOUNT|REGION", path.read_text())]
    assert left == []
    assert "my-bucket" in (copy / "base" / "settings.yaml").read_text()


@pytest.mark.parametrize("step", ["featurize", "train"])
@pytest.mark.parametrize("names", [("eks", "small"), ("small", "monitoring", "eks")], ids="-".join)
def test_components_combine_in_either_order(names: tuple[str, ...], step: str, tmp_path: Path, crds: Crds) -> None:
    copy = shutil.copytree(CLUSTER, tmp_path / "cluster")
    file = copy / "overlays" / "small" / step / "kustomization.yaml"
    tree = yaml.safe_load(file.read_text()) | {"components": [f"../../../components/{name}" for name in names]}
    file.write_text(yaml.safe_dump(tree))
    documents = render(str(file.parent))
    assert [*api_server(documents, crds), *lint(documents)] == []
    accounts = of_kind(documents, "ServiceAccount")
    assert all("eks.amazonaws.com/role-arn" in account["metadata"]["annotations"] for account in accounts)
