"""An official checkpoint becomes a run with the same numbers, if its encoders are those that the run names."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support import official_files
from torch import Tensor

from speechclip.encoders import load_encoder
from speechclip.encoders.clip import load_text_weights
from speechclip.errors import InvalidInput
from speechclip.heads import KeywordConfig, ParallelConfig, TextTower
from speechclip.official.importer import Imported, find_vocabulary, import_checkpoint
from speechclip.official.layout import describe
from speechclip.official.lightning import LightningFile
from speechclip.retrieval.model import load
from speechclip.training.checkpoint import RunFolder
from speechclip.training.recipe import load_recipe
from speechclip.training.run import load_run

SIZES = official_files.TINY
HUBERT, CLIP = "hubert:untrained-tiny", "clip:untrained-tiny"
# As in the official vocabularies: padding, `a`, start, end, and the others by falling count.
IDS = torch.tensor([0, 320, 49_406, 49_407, 530, 7, 2_368, 1_929, 40_000, 525])
RECIPE = "base-parallel-flickr8k"


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return load_text_weights(CLIP).tensors["token_embedding.weight"]


def write(
    path: Path, branch: OrderedDict[str, Tensor], tokens: Tensor, config: dict[str, Any] | None = None, **options: Any
) -> Path:
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS, **options)
    return official_files.write_checkpoint(path / "x.ckpt", branch, rest, config)


def bring(path: Path, folder: Path, **options: Any) -> Imported:
    return import_checkpoint(
        str(path), str(folder / "run"), **({"speech": HUBERT, "image": CLIP, "recipe": RECIPE} | options)
    )


def frames(sizes: dict[str, int] = SIZES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, sizes["layers"], 40, sizes["width"], generator=generator), torch.tensor([40, 17, 29])


def stripped(branch: OrderedDict[str, Tensor], rest: OrderedDict[str, Tensor]) -> dict[str, Tensor]:
    """The branch's tensors by the names in a head."""
    return {name.partition(".")[2]: value for name, value in branch.items()} | {
        "weighted_sum.weights": rest["audio_encoder.weightedsum_layer.weights"]
    }


def test_a_parallel_head_gives_what_one_built_from_the_same_tensors_gives(tokens: Tensor, tmp_path: Path) -> None:
    branch = official_files.parallel_state(SIZES)
    done = bring(write(tmp_path, branch, tokens), tmp_path)
    run = load_run(str(tmp_path / "run"))
    config = ParallelConfig(num_layers=5, width=96, image_width=64, embedding_width=64, feed_forward_width=384)
    assert done.layout.head == config
    direct = config.build().eval()
    direct.load_state_dict(stripped(branch, official_files.around(SIZES, tokens=tokens, ids=IDS)))
    with torch.inference_mode():
        found, expected = run.head(*frames()).embedding, direct(*frames()).embedding
    assert torch.equal(found, expected)
    assert run.vocabulary is None


@pytest.mark.parametrize(
    ("branch", "changes"),
    [
        (official_files.cascaded_state(SIZES), {}),
        (official_files.cascaded_state(SIZES, hidden=96), {"projection": (96,)}),
        (official_files.cascaded_state(SIZES, norm="apart"), {"batch_norm": "each-apart"}),
        (official_files.cascaded_state(SIZES, norm="same"), {"batch_norm": "same"}),
        (official_files.cascaded_state(SIZES, num_keywords=3), {"num_keywords": 3}),
        (official_files.plus_state(SIZES, is_hybrid=True, has_cif=False), {"has_parallel": True}),
        (
            official_files.plus_state(SIZES, is_hybrid=True, has_cif=False, parallel_hidden=32),
            {"has_parallel": True, "parallel_projection": (32,)},
        ),
        (
            official_files.plus_state(SIZES, is_hybrid=True, has_cif=False, is_transformer=True),
            {"has_parallel": True, "block": "transformer", "feed_forward_width": 384},
        ),
        (
            official_files.plus_state(SIZES, is_hybrid=False, has_cif=True, hidden=96),
            {"segmentation": "cif", "batch_norm": "same", "num_heads": 8, "projection": (96,)},
        ),
        (
            official_files.plus_state(SIZES, is_hybrid=True, has_cif=True),
            {"segmentation": "cif", "batch_norm": "same", "num_heads": 8, "has_parallel": True},
        ),
    ],
    ids=[
        "cascaded",
        "two-layers",
        "apart",
        "same",
        "three-keywords",
        "hybrid",
        "hybrid-layers",
        "transformer",
        "cascaded+",
        "hybrid+",
    ],
)
def test_a_head_with_keywords_gives_what_one_built_from_the_same_tensors_gives(
    branch: OrderedDict[str, Tensor], changes: dict[str, Any], tokens: Tensor, tmp_path: Path
) -> None:
    path = write(tmp_path, branch, tokens, is_learnable=True)
    done = bring(path, tmp_path)
    plain = KeywordConfig(num_layers=5, width=96, image_width=64, keyword_width=64, vocabulary_size=len(IDS))
    found = msgspec.structs.replace(done.layout.head, quantizer_temperature=0.1)
    assert done.layout.head.quantizer_temperature == pytest.approx(0.1)
    assert found == msgspec.structs.replace(plain, **changes)
    run = load_run(str(tmp_path / "run"))
    assert run.vocabulary is not None
    assert run.vocabulary.ids == tuple(IDS.tolist())
    text = load_text_weights(CLIP)
    tower = TextTower(text.tensors, num_heads=text.num_heads, is_quick_gelu=text.is_quick_gelu, vocabulary=IDS.tolist())
    direct = done.layout.head.build(tower).eval()
    direct.load_state_dict(stripped(branch, official_files.around(SIZES, tokens=tokens, ids=IDS)))
    with torch.inference_mode():
        outputs = run.head(*frames()), direct(*frames())
    assert torch.equal(outputs[0].embedding, outputs[1].embedding)
    assert torch.equal(outputs[0].keywords.tokens, outputs[1].keywords.tokens)


def test_a_run_says_where_it_came_from_and_what_it_binds_to(tokens: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path, official_files.cascaded_state(SIZES), tokens, is_learnable=True)
    done = bring(path, tmp_path, codec="fp32")
    info = RunFolder(str(tmp_path / "run")).finished()
    assert info == done.info
    with LightningFile(str(path)) as file:
        assert info.identity.imported == file.sha256()
    assert (info.identity.manifest, info.identity.catalog_version) == ("", -1)
    assert (info.head_step, info.num_steps, info.num_rows, info.best) == (6_902, 6_902, 0, None)
    assert info.identity.speech.fingerprint == load_encoder(HUBERT, "speech", codec="fp32").spec.fingerprint
    assert info.identity.image.fingerprint == load_encoder(CLIP, "image", codec="fp32").spec.fingerprint
    assert len(info.identity.untrained) == 3
    recipe = info.identity.recipe
    # The named recipe, with the settings that the file shows.
    assert (recipe.name, recipe.head, recipe.num_heads, recipe.is_temperature_learnable) == (
        RECIPE,
        "cascaded",
        1,
        True,
    )
    assert recipe.max_steps == load_recipe(RECIPE).max_steps
    weights = RunFolder(str(tmp_path / "run")).read_tensors("head.safetensors", info.head_sha256)
    assert weights["criterion.temperature"].item() == pytest.approx(2.659)


@pytest.mark.parametrize("codec", ["fp16", "fp32"])
def test_an_imported_head_embeds_a_recording_whatever_the_stored_type(
    codec: str, tokens: Tensor, tmp_path: Path
) -> None:
    bring(write(tmp_path, official_files.parallel_state(SIZES), tokens), tmp_path, codec=codec)
    model = load(str(tmp_path / "run"))
    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    assert np.linalg.norm(model.embed((noise, 16_000))) == pytest.approx(1, abs=1e-5)
    assert model.encoder("image").spec.codec == codec


def test_the_true_base_sizes_have_the_published_number_of_parameters(tmp_path: Path) -> None:
    """The poster says 7.5 M; docs/model.md, "Model sizes", has the exact number."""
    sizes = official_files.BASE
    rest = official_files.around(sizes, tokens=torch.zeros(49_408, 512), ids=IDS)
    config = {"data": {"dataset": {"name": "flickr"}}, "audio_encoder": {"normalize_hiddenstates": False}}
    path = official_files.write_checkpoint(tmp_path / "x.ckpt", official_files.parallel_state(sizes), rest, config)
    done = import_checkpoint(
        str(path), str(tmp_path / "run"), speech="hubert:untrained-base", image="clip:untrained-ViT-B-32"
    )
    assert done.num_parameters == 7_483_917
    assert (done.layout.recipe, done.info.identity.recipe.name) == ("base-parallel-flickr8k", "base-parallel-flickr8k")
    assert len(done.info.identity.untrained) == 2
    run = load_run(str(tmp_path / "run"))
    with torch.inference_mode():
        assert run.head(*frames(sizes)).embedding.shape == (3, 512)


@pytest.mark.parametrize(
    ("branch", "sizes", "is_learnable", "setting", "expected"),
    [
        (official_files.cascaded_state, official_files.BASE, False, "cascaded", 2_771_981),
        (official_files.parallel_state, official_files.LARGE, True, "parallel", 13_386_522),
        (official_files.cascaded_state, official_files.LARGE, True, "cascaded", 5_008_154),
        (
            lambda sizes: official_files.cascaded_state(sizes, hidden=1_024),
            official_files.LARGE, True, "cascaded", 6_057_754,
        ),
    ],
)  # fmt: skip
def test_the_published_models_are_known_by_their_true_shapes(
    branch: Any, sizes: dict[str, int], is_learnable: bool, setting: str, expected: int, tmp_path: Path
) -> None:
    """The numbers of trained parameters of docs/model.md, "Model sizes", from the file alone."""
    rest = official_files.around(sizes, tokens=torch.zeros(2, sizes["joint"]), ids=torch.tensor([0, 1]))
    if is_learnable:
        rest["criterion.temperature"] = torch.tensor(2.659)
    path = official_files.write_checkpoint(tmp_path / "x.ckpt", branch(sizes), rest)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "curr_temp")
    with LightningFile(str(path)) as file:
        layout = describe(file)
        names = [name for name in layout.names.values() if not name.endswith(buffers)]
        assert sum(file.read(name).numel() for name in names) == expected
    size = "base" if sizes is official_files.BASE else "large"
    assert (layout.kind, layout.size, layout.head.width) == (setting, size, sizes["width"])
    assert layout.head.normalize == ("s3prl" if size == "large" else "none")
    assert layout.head.num_heads == (8 if setting == "parallel" else 1)
    assert layout.left_out["HuBERT"] == 4


def settings(**changes: Any) -> dict[str, Any]:
    """A config like the official ones. `changes` replaces keys, named by their path with `__` between the parts."""
    config: dict[str, Any] = {
        "data": {"dataset": {"name": "coco", "normalize_waveform": False}},
        "audio_encoder": {"normalize_hiddenstates": True},
        "model_settings": {
            "parallel_branch": {"transformer_args": {"nhead": 8, "dropout": 0.1, "n_layers": 1, "activation": "gelu"}},
            "cascaded_branch": {
                "type": "KW_CascadedBranch",
                "transformer_args": {"nhead": 1, "layer_norm_eps": 1e-5},
                "vq": {"args": {"temp": "fixed=0.1"}},
            },
        },
    }
    for path, value in changes.items():
        inner = config
        *folders, last = path.split("__")
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return config


CASCADED = "model_settings__cascaded_branch__"


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({}, "normalize", "s3prl"),
        ({"audio_encoder__normalize_type": "method2"}, "normalize", "method2"),
        ({"audio_encoder__normalize_hiddenstates": False}, "normalize", "none"),
        ({f"{CASCADED}transformer_args__nhead": 4}, "num_heads", 4),
        ({f"{CASCADED}transformer_args__dropout": 0}, "dropout", 0.0),
        ({f"{CASCADED}transformer_args__dropout": 0.3}, "dropout", 0.3),
        ({f"{CASCADED}vq__args__temp": "learnable=0.1"}, "is_quantizer_learnable", True),
    ],
)
def test_the_config_in_the_file_decides_what_shapes_can_not_tell(
    changes: dict[str, Any], field: str, expected: object, tokens: Tensor, tmp_path: Path
) -> None:
    path = write(tmp_path, official_files.cascaded_state(SIZES), tokens, settings(**changes))
    with LightningFile(str(path)) as file:
        layout = describe(file)
    assert getattr(layout.head, field) == expected
    assert layout.corpus == "spokencoco"


def nested(times: int) -> Any:
    """A value of few bytes in a pickle that has 2 to the power of `times` words when it is printed."""
    found: Any = "x"
    for _ in range(times):
        found = (found, found)
    return found


@pytest.mark.parametrize(
    "place",
    [
        "data__dataset__name",
        "audio_encoder__normalize_type",
        f"{CASCADED}type",
        f"{CASCADED}transformer_args__layer_norm_eps",
        f"{CASCADED}vq__args__temp",
    ],
)
@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda: nested(60), "a tuple"), (lambda: 10**5000, "an int"), (lambda: "x" * 1000, "a str")],
    ids=["tuple", "int", "str"],
)
def test_a_config_that_would_take_for_ever_to_show_is_refused(
    place: str, make: Callable[[], Any], kind: str, tokens: Tensor, tmp_path: Path
) -> None:
    path = write(tmp_path, official_files.cascaded_state(SIZES), tokens, settings(**{place: make()}))
    refuses(path, tmp_path, f"its config has {place.rpartition('__')[2]} {kind}, which no official checkpoint has")


def test_a_file_without_a_readable_config_takes_the_published_choices(tokens: Tensor, tmp_path: Path) -> None:
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS)
    path = official_files.write_checkpoint(
        tmp_path / "x.ckpt", official_files.cascaded_state(SIZES), rest, hyper_parameters=None
    )
    with LightningFile(str(path)) as file:
        layout = describe(file)
    assert (layout.head.normalize, layout.head.num_heads, layout.corpus) == ("none", 1, "")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {f"{CASCADED}type": "KW_CascadedBranch_Integrated"},
            "KW_CascadedBranch_Integrated, which was never published",
        ),
        (
            {f"{CASCADED}transformer_args__layer_norm_eps": 1e-6},
            r"has layer_norm_eps 1e-06, the published models have 1e-05",
        ),
        ({f"{CASCADED}vq__args__hard": False}, "its args has hard False, the published models have True"),
        ({f"{CASCADED}vq__args__use_gumbel": True}, "its args has use_gumbel True, the published models have False"),
        ({"audio_encoder__normalize_type": "method3"}, "normalises hidden states by 'method3'"),
        ({f"{CASCADED}transformer_args__nhead": 7}, "7 attention heads do not divide the width 96"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(
    changes: dict[str, Any], sentence: str, tokens: Tensor, tmp_path: Path
) -> None:
    refuses(write(tmp_path, official_files.cascaded_state(SIZES), tokens, settings(**changes)), tmp_path, sentence)


@pytest.mark.parametrize(("key", "value"), [("norm_first", True), ("activation", "relu"), ("n_layers", 2)])
def test_a_transformer_that_computes_something_else_is_refused(
    key: str, value: object, tokens: Tensor, tmp_path: Path
) -> None:
    config = settings(**{f"model_settings__parallel_branch__transformer_args__{key}": value})
    path = write(tmp_path, official_files.parallel_state(SIZES), tokens, config)
    refuses(path, tmp_path, f"its transformer_args has {key} {value!r}")


def test_integrate_and_fire_of_another_threshold_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    branch = official_files.plus_state(SIZES, is_hybrid=False, has_cif=True)
    config = settings(
        **{f"{CASCADED}type": "CascadedBranch_dynamic", f"{CASCADED}downsampling__cif__cif_threshold": 0.9}
    )
    refuses(write(tmp_path, branch, tokens, config), tmp_path, r"its cif has cif_threshold 0\.9")


@pytest.mark.parametrize(
    ("number", "width", "sentence"),
    [(2, 5, "has 2 convolutions of 5 frames"), (2, 3, "has 2 convolutions of 3"), (1, 5, "has 1 convolution of 5")],
)
def test_other_convolutions_of_integrate_and_fire_are_refused(
    number: int, width: int, sentence: str, tokens: Tensor, tmp_path: Path
) -> None:
    """The released Large Cascaded+ on SpokenCOCO has two of five frames."""
    branch = official_files.plus_state(
        SIZES, is_hybrid=False, has_cif=True, num_convolutions=number, convolution_width=width
    )
    config = settings(**{f"{CASCADED}type": "CascadedBranch_dynamic"})
    path = write(tmp_path, branch, tokens, config)
    refuses(path, tmp_path, rf"{sentence}.*a head here has one of 3; import another released checkpoint")


def test_a_temperature_of_another_loss_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    branch = official_files.parallel_state(SIZES) | {"criterion.temperature": torch.zeros(1)}
    refuses(write(tmp_path, branch, tokens), tmp_path, "its temperature is of another loss")


def test_a_vocabulary_in_another_order_says_what_is_excluded(tokens: Tensor, tmp_path: Path) -> None:
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS.flip(0))
    path = official_files.write_checkpoint(tmp_path / "x.ckpt", official_files.cascaded_state(SIZES), rest)
    (note,) = bring(path, tmp_path).notes
    assert note.startswith("the official code never chooses places 0, 2 and 3")


def refuses(path: Path, folder: Path, sentence: str, **options: Any) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refusal:
        bring(path, folder, **options)
    assert "\n" not in str(refusal.value)
    assert not (folder / "run").exists() or not any((folder / "run").rglob("*"))


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        ("second_branch.cls", r"holds tensors that no published model has \(1 in all\): second_branch\.cls"),
        ("criterion.margin", r"no published model has .*: criterion\.margin"),
        ("audio_encoder.weightedsum_layer.bias", r"no published model has .*: audio_encoder\.weightedsum_layer\.bias"),
        ("cascaded_branch.extra.weight", r"cascaded_branch\.extra\.weight is unknown"),
        ("cascaded_branch.linear_proj2.weight", r"linear_proj2\.weight is unknown"),
        ("img_enc_proj_net.sequential.0.weight", "projections of an experiment before the release"),
        ("p_branch_proj_net.sequential.3.bias", "projections of an experiment before the release"),
        ("parallel_branch.cls", "both a parallel and a cascaded branch"),
    ],
)
def test_a_tensor_that_the_head_has_no_place_for_is_named_and_never_dropped(
    odd: str, sentence: str, tokens: Tensor, tmp_path: Path
) -> None:
    branch = official_files.cascaded_state(SIZES)
    branch[odd] = torch.zeros(1, 1, 96)
    refuses(write(tmp_path, branch, tokens), tmp_path, sentence)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cascaded_branch.cls", r"lacks cascaded_branch\.cls"),
        ("cascaded_branch.linear_proj.weight", r"lacks cascaded_branch\.linear_proj\.weight"),
        ("cascaded_branch.linear_proj.bias", r"linear_proj\.bias is missing"),
        ("cascaded_branch.bn_layer.bn_layer.running_var", r"running_var is missing"),
        ("cascaded_branch.vector_quantizer.curr_temp", r"lacks cascaded_branch\.vector_quantizer\.curr_temp"),
    ],
)
def test_a_tensor_that_is_missing_is_named(name: str, sentence: str, tokens: Tensor, tmp_path: Path) -> None:
    branch = official_files.cascaded_state(SIZES)
    del branch[name]
    refuses(write(tmp_path, branch, tokens), tmp_path, sentence)


def test_other_damage_in_a_head_is_said(tokens: Tensor, tmp_path: Path) -> None:
    branch = official_files.cascaded_state(SIZES)
    branch["cascaded_branch.cls"][0, 0, 0] = float("nan")
    refuses(write(tmp_path, branch, tokens), tmp_path, r"cascaded_branch\.cls holds numbers that are not finite")
    branch = official_files.cascaded_state(SIZES)
    branch["cascaded_branch.linear_proj.bias"] = torch.zeros(3)
    refuses(write(tmp_path, branch, tokens), tmp_path, r"linear_proj\.bias is \(3,\)")
    branch = official_files.cascaded_state(SIZES)
    branch["cascaded_branch.bn_layer.bn_layer.weight"] = torch.zeros(100)
    refuses(write(tmp_path, branch, tokens), tmp_path, "a BatchNorm of 100 numbers fits neither 64 nor 8 x 64")
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS)
    path = official_files.write_checkpoint(tmp_path / "x.ckpt", OrderedDict(), rest)
    refuses(path, tmp_path, "holds no branch")
    branch = official_files.cascaded_state(SIZES, hidden=96)
    branch["cascaded_branch.linear_proj.sequential.2.weight"] = branch.pop(
        "cascaded_branch.linear_proj.sequential.3.weight"
    )
    refuses(write(tmp_path, branch, tokens), tmp_path, r"linear_proj\.sequential has the places \[0, 2\]")


def test_an_encoder_of_other_sizes_is_refused_with_both_sides(tokens: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path, official_files.parallel_state(SIZES), tokens)
    sentence = "takes 5 states of width 96, hubert:untrained-base gives 13 of width 768"
    refuses(path, tmp_path, sentence, speech="hubert:untrained-base")
    refuses(path, tmp_path, "image vectors of width 64, toy gives", image="toy")


def test_a_width_of_no_published_model_needs_its_encoders_and_recipe_named(tokens: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path, official_files.parallel_state(SIZES), tokens)
    refuses(path, tmp_path, "name the encoder by --speech", speech=None)
    refuses(path, tmp_path, "name the encoder by --image", image=None)
    refuses(path, tmp_path, "no recipe is known; name the nearest by --recipe", recipe=None)
    refuses(path, tmp_path, "no recipe 'nothing'", recipe="nothing")


def test_another_clip_is_another_vocabulary(tokens: Tensor, tmp_path: Path) -> None:
    other = write(tmp_path, official_files.cascaded_state(SIZES), tokens.flip(0))
    sentence = "another vocabulary: its CLIP has 49,408 tokens of width 64 .* of clip:untrained-tiny; name"
    refuses(other, tmp_path, sentence)


def test_rows_that_do_not_tell_their_token_are_refused(tokens: Tensor, tmp_path: Path) -> None:
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS)
    branch = official_files.cascaded_state(SIZES)
    rows = tokens[IDS].clone()
    rows[3] += 1
    path = official_files.write_checkpoint(
        tmp_path / "x.ckpt", branch, rest | {"clip.model.token_embedding.weight": rows}
    )
    refuses(path, tmp_path, r"row 3 is none of CLIP's tokens")
    twice = torch.tensor([0, 320, 49_406, 49_407, 320, 7, 2_368, 1_929, 40_000, 525])
    path = official_files.write_checkpoint(
        tmp_path / "x.ckpt", branch, rest | {"clip.model.token_embedding.weight": tokens[twice]}
    )
    refuses(path, tmp_path, "two of its rows are the same")
    lacking = torch.tensor([0, 320, 49_406, 5, 530, 7, 2_368, 1_929, 40_000, 525])
    path = official_files.write_checkpoint(
        tmp_path / "x.ckpt", branch, rest | {"clip.model.token_embedding.weight": tokens[lacking]}
    )
    refuses(path, tmp_path, "each must occur once")


def fairseq(encoder: Any) -> OrderedDict[str, Tensor]:
    """Tensors of a HuBERT with five states, by the names in a checkpoint."""
    own = encoder.weights()
    return OrderedDict(
        {
            "audio_encoder.encoder.feature_extractor.conv_layers.0.0.weight": own[
                "feature_extractor.conv_layers.0.conv.weight"
            ],
            "audio_encoder.encoder.encoder.layers.0.self_attn.q_proj.weight": own[
                "encoder.layers.0.attention.q_proj.weight"
            ],
            "audio_encoder.encoder.encoder.layers.3.fc2.weight": own[
                "encoder.layers.3.feed_forward.output_dense.weight"
            ],
        }
    )


def note_of(encoder: str) -> str:
    return f"{encoder} is untrained and the head was trained with other weights: this run's embeddings mean nothing"


def test_a_file_that_holds_other_encoder_weights_says_so(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(HUBERT, "speech")
    own = fairseq(encoder)
    rest = official_files.around(SIZES, tokens=tokens, ids=IDS)
    branch = official_files.parallel_state(SIZES)

    def write_with(changes: dict[str, Tensor]) -> Path:
        return official_files.write_checkpoint(tmp_path / "x.ckpt", branch, rest | own | changes)

    assert bring(write_with({}), tmp_path).notes == ()
    for name in own:
        path = write_with({name: own[name] + 1e-3})
        done = import_checkpoint(str(path), str(tmp_path / name), speech=HUBERT, image=CLIP, recipe=RECIPE)
        assert done.notes == (note_of(HUBERT),)
    image = {"clip.model.visual.conv1.weight": torch.zeros(128, 3, 32, 32)}
    done = import_checkpoint(str(write_with(image)), str(tmp_path / "i"), speech=HUBERT, image=CLIP, recipe=RECIPE)
    assert done.notes == (note_of(CLIP),)
    # If the encoder is trained, the same difference is an error.
    trained = msgspec.structs.replace(encoder.spec, is_trained=True)
    monkeypatch.setattr(encoder, "spec", trained)
    monkeypatch.setattr(
        "speechclip.official.importer.load_encoder",
        lambda source, modality, **options: encoder if modality == "speech" else load_encoder(source, modality),
    )
    folder = tmp_path / "trained"
    path = write_with({"audio_encoder.encoder.encoder.layers.3.fc2.weight": torch.zeros(96, 192)})
    sentence = r"trained on other weights than --speech hubert:untrained-tiny .*layers\.3\.fc2\.weight differs"
    refuses(path, folder, sentence)
    assert bring(write_with({}), folder).info.identity.untrained == [load_encoder(CLIP, "image").spec.fingerprint]


def test_a_model_of_normalised_waveforms_says_what_it_lacks(tokens: Tensor, tmp_path: Path) -> None:
    config = settings(data__dataset__normalize_waveform=True)
    path = write(tmp_path, official_files.parallel_state(SIZES), tokens, config)
    assert bring(path, tmp_path).notes == (
        "this head was trained on waveforms of mean 0 and variance 1, but hubert:untrained-tiny gets raw ones",
    )


def test_a_folder_with_a_run_is_left_as_it_is(tokens: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path, official_files.parallel_state(SIZES), tokens)
    done = bring(path, tmp_path)
    with pytest.raises(InvalidInput, match="holds a run already"):
        bring(path, tmp_path)
    assert load_run(str(tmp_path / "run")).info == done.info
    started = tmp_path / "started" / "run" / "checkpoints" / "step-000005"
    started.mkdir(parents=True)
    (started / "checkpoint.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds a run already"):
        bring(path, tmp_path / "started")


def test_two_equal_rows_among_all_tokens_leave_an_id_open(tokens: Tensor, tmp_path: Path) -> None:
    every = tokens.clone()
    every[9] = every[320]
    path = write(tmp_path, official_files.cascaded_state(SIZES), every)
    text = dataclasses.replace(load_text_weights(CLIP), tensors={"token_embedding.weight": every})
    with LightningFile(str(path)) as file, pytest.raises(InvalidInput, match="two of its rows are the same"):
        find_vocabulary(file, text, CLIP)
