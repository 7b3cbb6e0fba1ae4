"""Tables, files and caveats of reports."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from speechclip.evaluation.comparison import caveats_of
from speechclip.evaluation.published import published_rows
from speechclip.evaluation.recall import BothDirections, measure_both
from speechclip.evaluation.report import EvaluationReport, TextReport, write_report
from speechclip.heads import ParallelConfig
from speechclip.storage import Storage
from speechclip.training.identity import FeatureSetRef, RunIdentity
from speechclip.training.recipe import Recipe, load_recipe


def figures(num_images: int, captions: int) -> BothDirections:
    """Figures where every third utterance has the embedding of its image, and the others that of the next image."""
    groups = np.repeat(np.arange(num_images), captions)
    aims = np.where(np.arange(len(groups)) % 3 == 0, groups, (groups + 1) % num_images)
    angles = 2 * np.pi * np.arange(num_images) / num_images
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return measure_both(images[aims], images, groups, np.arange(num_images))


def identity(recipe: Recipe) -> RunIdentity:
    head = ParallelConfig(
        num_layers=13, width=768, image_width=512, embedding_width=512, feed_forward_width=3072, num_heads=8
    )
    return RunIdentity(
        manifest="m", catalog_version=1, recipe=recipe, head=head,
        speech=FeatureSetRef(fingerprint="s", encoder_name="hubert:facebook/hubert-base-ls960", is_trained=True),
        image=FeatureSetRef(fingerprint="i", encoder_name="clip:ViT-B-32/openai", is_trained=True),
    )  # fmt: skip


def report(recipe_name: str, num_images: int = 1_000, **changes: object) -> EvaluationReport:
    both = figures(num_images, 5)
    made = EvaluationReport(
        manifest="m", catalog_version=1, speech="s", image="i", recipe=recipe_name, head_step=9, split="test",
        candidates="split", num_utterances=5 * num_images, num_missing=0, retrieval={"parallel": both}, untrained=(),
        published=published_rows(recipe_name),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_published_rows_and_this_run_are_marked() -> None:
    text = report("base-parallel-flickr8k").to_text()
    for model in ("FaST-VGS CO", "FaST-VGS CTF", "MILAN", "Parallel Base", "Cascaded Large"):
        assert f"published: {model}" in text
    assert "this run, parallel" in text
    assert "epoch 131" not in text
    assert "ResDAVEnet" not in text
    assert "NOT COMPARABLE" not in text


def test_another_recipe_has_no_published_rows_and_no_caveats() -> None:
    found = report("demo-parallel", num_images=6)
    assert "published" not in found.to_text()
    assert caveats_of(found, identity(load_recipe("demo-parallel"))) == ()


def test_a_report_on_dev_shows_the_published_dev_figures() -> None:
    text = report("base-parallel-flickr8k", split="dev").to_text()
    assert "published, dev: Parallel Base, epoch 131" in text
    assert "36.01" in text


def test_the_setting_of_the_paper_has_no_caveats() -> None:
    recipe = load_recipe("base-parallel-flickr8k")
    assert caveats_of(report(recipe.name), identity(recipe)) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"untrained": ("s",)}, "random weights"),
        ({"split": "dev"}, "the split is 'dev'"),
        ({"candidates": "all"}, "candidates are those of the whole manifest"),
        ({"retrieval": {"parallel": figures(20, 5)}}, "100 utterances among 20 images, flickr8k has 5,000 and 1,000"),
        ({"num_missing": 3}, "3 utterances have no stored features"),
        (
            {"text": TextReport(feature_set="t", branch="parallel", num_missing=0, retrieval=figures(20, 5))},
            "20 captions compete, flickr8k has 5,000",
        ),
    ],
)  # fmt: skip
def test_each_difference_to_the_published_setting_is_a_caveat(changes: dict[str, object], words: str) -> None:
    recipe = load_recipe("base-parallel-flickr8k")
    found = report(recipe.name, **changes)
    caveats = caveats_of(found, identity(recipe))
    assert any(words in caveat for caveat in caveats)
    assert len(caveats) == 1
    loud = msgspec.structs.replace(found, caveats=caveats).to_text()
    assert "NOT COMPARABLE with the published rows" in loud


def test_other_encoders_and_other_recipes_are_caveats() -> None:
    recipe = load_recipe("base-parallel-flickr8k", {"batch_size": 64})
    other = msgspec.structs.replace(
        identity(recipe),
        speech=FeatureSetRef(fingerprint="s", encoder_name="whisper:tiny", is_trained=True),
        image=FeatureSetRef(fingerprint="i", encoder_name="timm:lite0", is_trained=True),
    )
    caveats = caveats_of(report(recipe.name), other)
    for words, caveat in zip(("whisper:tiny", "timm:lite0", "batch_size"), caveats, strict=True):
        assert words in caveat
    unknown = msgspec.structs.replace(recipe, name="large-parallel-flickr8k-mine-flickr8k")
    last = caveats_of(report(unknown.name), identity(unknown))[-1]
    assert "no recipe large-parallel-flickr8k-mine-flickr8k to compare" in last


def test_the_files_have_the_whole_report(store_uri: str) -> None:
    found = report("base-parallel-flickr8k", num_images=20, notes=("look here",))
    write_report(store_uri, found)
    write_report(store_uri, found)
    folder = Storage(store_uri)
    assert msgspec.json.decode(folder.read("report.json"), type=EvaluationReport) == found
    text = folder.read("report.txt").decode()
    assert text == found.to_text()
    assert "note: look here" in text


def test_a_missing_local_folder_is_made(tmp_path: Path) -> None:
    write_report(str(tmp_path / "a" / "b"), report("demo-parallel", num_images=6))
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["report.json", "report.txt"]
