"""What `import speechclip` offers: each name is public on purpose, documented, typed, and loaded when first used."""

import importlib
import inspect
import subprocess
import sys

import pytest

import speechclip

# A name added here is a promise. Taking one away breaks the code of users.
SURFACE = {
    "Answer", "Estimate", "EvaluationReport", "FeatureRow", "FeatureStore", "Frames", "Manifest", "Model", "Recipe",
    "Rejection", "RunInfo", "RunSettings", "Searcher", "Snapshot", "Summary", "Vectors", "embed", "errors", "evaluate",
    "export_webdataset", "featurize", "ingest_flickr8k", "ingest_lhotse", "ingest_spokencoco", "ingest_synthetic",
    "ingest_table", "ingest_tuxpaint", "ingest_webdataset", "iter_features", "load", "load_recipe", "plan", "rejected",
    "search", "train",
}  # fmt: skip
FUNCTIONS = sorted(name for name in SURFACE if name[0].islower() and name != "errors")


def test_the_surface_is_exactly_this() -> None:
    assert set(speechclip.__all__) == SURFACE
    assert set(dir(speechclip)) == SURFACE


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_a_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(speechclip, name)), f"speechclip.{name} has no docstring"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_fully_typed(name: str) -> None:
    signature = inspect.signature(getattr(speechclip, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name})"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="featurise"):
        speechclip.featurise  # noqa: B018


def test_no_room_hides_a_function_of_the_surface() -> None:
    """A submodule of the same name would take the function's place once it is imported."""
    for name in FUNCTIONS:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"speechclip.{name}")


def test_the_import_alone_loads_neither_torch_nor_ray() -> None:
    program = "import speechclip, sys; print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
