"""The Grafana board shows the metrics that the documents name, all of them and no others."""

import json
import re
from pathlib import Path

from support.kube_manifests import of_kind, render

PROJECT = Path(__file__).parents[2]


def test_the_board_shows_just_the_documented_metrics() -> None:
    documented = set(re.findall(r"`(ray_speechclip_\w+)`", (PROJECT / "docs" / "metrics.md").read_text()))
    board = json.loads((PROJECT / "cluster" / "components" / "monitoring" / "board.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = {re.sub(r"_bucket$", "", name) for text in asked for name in re.findall(r"ray_speechclip_\w+", text)}
    assert shown == documented
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_kustomize_hands_the_board_to_grafanas_sidecar() -> None:
    maps = of_kind(render("overlays/eks/train"), "ConfigMap")
    (found,) = [one for one in maps if one["metadata"]["name"] == "speechclip-board"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["board.json"])["uid"] == "speechclip"
