"""What the API server would say to a document, without one: schemas of core objects, and of CRDs with their CEL rules.

Against a real API server 19 of 21 broken documents were judged alike by such a reading of CRDs; the two that were not,
names and duplicate keys of a list, are checked here as well. What the server checks by code of its own, such as the
words in a policy's policyTypes, no schema holds.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.34"
NEEDED = ("rayclusters", "rayjobs", "rayservices")
HOW_TO_GET = """the CRDs of KubeRay v1.7.0 are not in {folder}, and without them the manifests are NOT checked.
They are the three files ray.io_rayclusters, ray.io_rayjobs and ray.io_rayservices (.yaml, or the same as .json) of
helm-chart/kuberay-operator/crds/ in ray-project/kuberay at v1.7.0. Put them into the folder crds/ of this project, or
name their folder: make test CRDS=FOLDER, or pytest --crds FOLDER."""
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
Node = dict[str, Any]


class Crds:
    """The served schemas of the CRDs in a folder; `FileNotFoundError` says how to get them."""

    def __init__(self, folder: Path) -> None:
        files = [
            next((path for path in folder.glob(f"ray.io_{name}.*") if path.suffix in (".json", ".yaml")), None)
            for name in NEEDED
        ]
        if None in files:
            raise FileNotFoundError(HOW_TO_GET.format(folder=folder))
        self.schemas: dict[tuple[str, str], Node] = {}
        self._strict: dict[tuple[str, str], jsonschema.Draft7Validator] = {}
        for file in filter(None, files):
            spec = _read(file)["spec"]
            for version in spec["versions"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                self.schemas[key] = version["schema"]["openAPIV3Schema"]

    def findings(self, document: Node) -> Iterator[str]:
        """What is wrong with a custom resource, in the API server's sense."""
        key = (document["apiVersion"], document["kind"])
        schema = self.schemas[key]
        if key not in self._strict:
            self._strict[key] = jsonschema.Draft7Validator(_strict(schema, is_root=True))
        for error in self._strict[key].iter_errors(document):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        name = document["metadata"].get("name", "")
        # With `generateName` the server completes it.
        if not _DNS_1123.fullmatch(name or document["metadata"].get("generateName", "") + "x"):
            yield f"metadata.name: {name!r} is no DNS-1123 name"
        yield from _rules(schema, document, "")


def core_findings(document: Node) -> Iterator[str]:
    """What is wrong with an object of Kubernetes' own."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield str(error).partition("\n")[0][:300]


def _read(file: Path) -> Node:
    text = file.read_text()
    found: Node = json.loads(text) if file.suffix == ".json" else yaml.load(text, yaml.CSafeLoader)
    return found


def _strict(node: Node, *, is_root: bool = False) -> Node:
    """A JSON schema that refuses unknown fields, as `fieldValidation=Strict` does."""
    kept = {name: deepcopy(node[name]) for name in ("type", "enum", "pattern", "anyOf") if name in node}
    kept |= {name: node[name] for name in ("minimum", "maximum", "minLength", "maxLength", "minItems") if name in node}
    if node.get("x-kubernetes-int-or-string"):
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "items" in node:
        kept["items"] = _strict(node["items"])
    if node.get("format") in ("int32", "int64"):
        limit = 2 ** (int(node["format"][3:]) - 1)
        kept |= {"minimum": max(-limit, node.get("minimum", -limit)), "maximum": limit - 1}
    if node.get("type") == "object":
        properties = {name: _strict(child) for name, child in node.get("properties", {}).items()}
        if is_root:
            # Kubernetes' own business, and checked by it.
            properties["metadata"] = {"type": "object"}
        kept["properties"] = properties
        # The server fills in defaults before it asks what is missing.
        filled_in = {name for name, child in node.get("properties", {}).items() if "default" in child}
        kept["required"] = sorted(set(node.get("required", [])) - filled_in)
        others = node.get("additionalProperties")
        if isinstance(others, dict):
            kept["additionalProperties"] = _strict(others)
        elif not others and not node.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    if node.get("nullable") and "type" in kept:
        kept["type"] = [kept["type"], "null"]
    return kept


def _rules(node: Node, value: Any, path: str) -> Iterator[str]:
    """CEL rules and unique keys, everywhere below; rules about a change do not apply to what is created."""
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        others = node.get("additionalProperties")
        for name, child in value.items():
            below = node.get("properties", {}).get(name, others if isinstance(others, dict) else None)
            if below is not None:
                yield from _rules(below, child, f"{path}.{name}")
    elif isinstance(value, list):
        yield from _duplicates(node, value, path)
        for index, child in enumerate(value):
            yield from _rules(node.get("items", {}), child, f"{path}[{index}]")


def _duplicates(node: Node, value: list[Any], path: str) -> Iterator[str]:
    if node.get("x-kubernetes-list-type") != "map":
        return
    properties = node["items"].get("properties", {})
    names = node["x-kubernetes-list-map-keys"]
    defaults = {name: properties.get(name, {}).get("default") for name in names}
    keys = [tuple(child.get(name, defaults[name]) for name in names) for child in value if isinstance(child, dict)]
    for key in sorted({str(key) for key in keys if keys.count(key) > 1}):
        yield f"{path}: {key} stands there twice"
