"""Finds out which head an official checkpoint holds, from the names and shapes of its tensors and from its config.

Sources: docs/model.md, "Official checkpoints"; which parts come from where: docs/heads.md, "Official checkpoints".
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechclip.errors import InvalidInput
from speechclip.heads import HeadConfig, KeywordConfig, ParallelConfig
from speechclip.heads.weighted_sum import Normalization
from speechclip.official.lightning import LightningFile, settings
from speechclip.training.recipe import HeadKind

PARALLEL, CASCADED = "parallel_branch.", "cascaded_branch."
TOKENS, ALL_TOKENS = "clip.model.token_embedding.weight", "clip.original_text_emb_weight"
TEMPERATURE = "criterion.temperature"
_MIXTURE = "audio_encoder.weightedsum_layer.weights"
# Tensors that a head does not need: they are frozen, or only the training used them. The first pattern that matches
# gives a tensor its kind.
_LEFT_OUT = {
    "HuBERT": r"audio_encoder\.encoder\.",
    "CLIP": r"clip\.",
    "CLIP again": r"cascaded_branch\.clip\.",
    "the loss's masks": r"criterion\.(eye_mat|neg_eye_mat|eye_mat_fl)$",
}
_PROJECTIONS = ("img_enc_proj_net.", "p_branch_proj_net.", "c_branch_proj_net.")
# Settings of a config that change what a head computes and that its tensors do not show. Our heads compute only with
# these values.
_ATTENTION = {"layer_norm_eps": 1e-5}
_TRANSFORMER = {"n_layers": 1, "activation": "gelu", "norm_first": False}
_CHOICE = {"hard": True, "use_gumbel": False}
_FIRING = {"cif_threshold": 1.0, "apply_tail_handling": True, "tail_handling_firing_threshold": 0.5}
# The convolution that gives CIF its weights, and its width in frames.
_CONVOLUTION, _CONVOLUTION_WIDTH = f"{CASCADED}downsampling.conv.", 3
_TYPES = ("CascadedBranch", "CascadedBranch_plus", "HybridBranch", "HybridBranch_plus")
_KINDS: dict[tuple[bool, bool], HeadKind] = {
    (False, False): "cascaded", (True, False): "hybrid", (False, True): "cascaded-plus", (True, True): "hybrid-plus",
}  # fmt: skip
_NORMALIZATIONS: dict[str, Normalization] = {"s3prl": "s3prl", "method1": "method1", "method2": "method2"}
# A text in a config that has more characters than this is refused.
_LONGEST = 200
_RELEASED = "import a checkpoint that the authors of SpeechCLIP or SpeechCLIP+ released"
_SIZES = {768: "base", 1024: "large"}
_CORPORA = {"flickr": "flickr8k", "coco": "spokencoco"}
_CORPUS_OF_VOCABULARY = {8_112: "flickr8k", 19_787: "spokencoco"}


@dataclass(frozen=True)
class Layout:
    """Which head a checkpoint holds.

    `names` has the tensors of the head: our name for each, and its name in the file. `left_out` has the number of other
    tensors of each kind. `size` (`base` or `large`) and `corpus` (`flickr8k` or `spokencoco`) are empty if the model is
    none of the published ones.
    """

    kind: HeadKind
    size: str
    corpus: str
    head: HeadConfig
    names: dict[str, str]
    left_out: dict[str, int]
    is_waveform_normalized: bool

    @property
    def recipe(self) -> str:
        """The name of the recipe with this model's published settings. Empty if the model was not published."""
        return f"{self.size}-{self.kind}-{self.corpus}" if self.size and self.corpus else ""


def describe(file: LightningFile) -> Layout:
    """The layout of a checkpoint.

    Raises `InvalidInput` if its head is of no published kind, or if it holds a tensor that we do not know.
    """
    names, left_out = _sort_tensors(file)
    if any(name.startswith(PARALLEL) for name in names.values()):
        found: tuple[HeadKind, HeadConfig] = ("parallel", _parallel(file))
    else:
        found = _keyword(file)
    kind, head = found
    vocabulary = file.tensors[TOKENS].shape[0] if TOKENS in file.tensors else 0
    corpus = _CORPORA.get(str(_setting(file, "data", "dataset", "name")), "")
    return Layout(
        kind=kind,
        size=_SIZES.get(head.width, ""),
        corpus=corpus or _CORPUS_OF_VOCABULARY.get(vocabulary, ""),
        head=head,
        names=names,
        left_out=left_out,
        is_waveform_normalized=_setting(file, "data", "dataset", "normalize_waveform") is True,
    )


def _sort_tensors(file: LightningFile) -> tuple[dict[str, str], dict[str, int]]:
    """The file's name for each tensor of the head, by our name, and how many other tensors of each kind there are."""
    names: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    unknown: list[str] = []
    for official in file.tensors:
        kind = next((kind for kind, pattern in _LEFT_OUT.items() if re.match(pattern, official)), None)
        if kind:
            left_out[kind] += 1
        elif official == _MIXTURE:
            names["weighted_sum.weights"] = official
        elif official == TEMPERATURE:
            names[TEMPERATURE] = official
        elif official.startswith((PARALLEL, CASCADED)):
            names[official.partition(".")[2]] = official
        else:
            unknown.append(official)
    file.shape(_MIXTURE)
    if TEMPERATURE in names and file.shape(TEMPERATURE):
        raise InvalidInput(f"{file.path}: its temperature is of another loss than the published models'", _RELEASED)
    _refuse_unknown(file, unknown)
    _require_one_branch(file, names)
    return names, dict(left_out)


def _refuse_unknown(file: LightningFile, unknown: list[str]) -> None:
    if projections := [name for name in unknown if name.startswith(_PROJECTIONS)]:
        raise InvalidInput(
            f"{file.path}: holds {', '.join(projections)}: projections of an experiment before the release, which no "
            "head here has",
            _RELEASED,
        )
    if unknown:
        shown = ", ".join(unknown[:8])
        raise InvalidInput(
            f"{file.path}: holds tensors that no published model has ({len(unknown)} in all): {shown}", _RELEASED
        )


def _require_one_branch(file: LightningFile, names: Mapping[str, str]) -> None:
    branches = {prefix for prefix in (PARALLEL, CASCADED) if any(name.startswith(prefix) for name in names.values())}
    if len(branches) != 1:
        both = "both a parallel and a cascaded branch, each with its own attention" if branches else "no branch"
        raise InvalidInput(f"{file.path}: holds {both}; the published models have one branch", _RELEASED)


def _parallel(file: LightningFile) -> ParallelConfig:
    arguments = ("model_settings", "parallel_branch", "transformer_args")
    _check(file, _ATTENTION | _TRANSFORMER, *arguments)
    num_layers, width = file.shape(_MIXTURE)[0], _size(file, f"{PARALLEL}cls", 2)
    embedding = _size(file, f"{PARALLEL}linear_proj.weight", 0)
    return ParallelConfig(
        num_layers=num_layers,
        width=width,
        image_width=embedding,
        embedding_width=embedding,
        feed_forward_width=_size(file, f"{PARALLEL}self_att.model.layers.0.linear1.weight", 0),
        num_heads=_count(file, 8, *arguments, "nhead"),
        dropout=_fraction(file, *arguments, "dropout"),
        normalize=_normalization(file, width, is_plus=False),
    )


def _keyword(file: LightningFile) -> tuple[HeadKind, KeywordConfig]:
    """The kind and the config of a cascaded or hybrid head."""
    kind = str(_setting(file, "model_settings", "cascaded_branch", "type") or "CascadedBranch")
    if kind.removeprefix("KW_").replace("dynamic", "plus") not in _TYPES:
        raise InvalidInput(f"{file.path}: its cascaded branch is a {kind}, which was never published", _RELEASED)
    has = {name.removeprefix(CASCADED).partition(".")[0] for name in file.tensors if name.startswith(CASCADED)}
    is_plus, is_hybrid = "downsampling" in has, "parallel_proj" in has
    is_transformer = f"{CASCADED}self_att.model.layers.0.linear1.weight" in file.tensors
    branch = ("model_settings", "cascaded_branch")
    arguments = (*branch, "transformer_args")
    _check(file, _ATTENTION | (_TRANSFORMER if is_transformer else {}), *arguments)
    _check(file, _CHOICE, *branch, "vq", "args")
    if is_plus:
        _check(file, _FIRING, *branch, "downsampling", "cif")
        _check_convolution(file)
    slots = "cascaded_cls" if is_hybrid else "cls"
    attention = "self_att.model.layers.0.self_attn" if is_transformer else "self_att.multihead_attn_layer"
    width = _size(file, f"{CASCADED}{attention}.out_proj.weight", 0)
    num_keywords = 8 if is_plus else _size(file, f"{CASCADED}{slots}", 1)
    keyword_width, joint = _size(file, TOKENS, 1), "clip.model.text_projection"
    temperature = str(_setting(file, *branch, "vq", "args", "temp"))
    head = KeywordConfig(
        num_layers=file.shape(_MIXTURE)[0],
        width=width,
        image_width=_size(file, joint, 1) if joint in file.tensors else keyword_width,
        keyword_width=keyword_width,
        vocabulary_size=_size(file, TOKENS, 0),
        has_parallel=is_hybrid,
        segmentation="cif" if is_plus else "fixed",
        num_keywords=num_keywords,
        num_heads=_count(file, 8 if is_plus else 1, *arguments, "nhead"),
        block="transformer" if is_transformer else "attention",
        feed_forward_width=(
            _size(file, f"{CASCADED}self_att.model.layers.0.linear1.weight", 0) if is_transformer else 0
        ),
        projection=_hidden_widths(file, f"{CASCADED}linear_proj."),
        parallel_projection=_hidden_widths(file, f"{CASCADED}parallel_proj.") if is_hybrid else (),
        dropout=_fraction(file, *arguments, "dropout"),
        normalize=_normalization(file, width, is_plus=is_plus),
        batch_norm=_batch_norm(file, num_keywords, keyword_width, is_plus=is_plus),
        quantizer_temperature=float(file.read(f"{CASCADED}vector_quantizer.curr_temp").reshape(-1)[0]),
        is_quantizer_learnable=temperature.startswith("learnable="),
        rescale_steps=_count(file, 5_000, *branch, "downsampling", "cif", "scaling_step"),
    )
    return _KINDS[is_hybrid, is_plus], head


def _batch_norm(file: LightningFile, num_keywords: int, width: int, *, is_plus: bool) -> Any:
    """The form of BatchNorm that the tensors' names and sizes show."""
    if f"{CASCADED}bn_layer.bn_layers.0.weight" in file.tensors:
        return "each-apart"
    found = _size(file, f"{CASCADED}bn_layer.bn_layer.weight", 0)
    if found == width * num_keywords and not is_plus:
        return "each"
    if found == width:
        return "same"
    raise InvalidInput(
        f"{file.path}: a BatchNorm of {found} numbers fits neither {width} nor {num_keywords} x {width}", _RELEASED
    )


def _check_convolution(file: LightningFile) -> None:
    """Raises `InvalidInput` unless CIF has one convolution of three frames, as `heads.cif` builds it."""
    kernel = _size(file, f"{_CONVOLUTION}0.weight", 2)
    number = sum(name.startswith(_CONVOLUTION) and name.endswith(".weight") for name in file.tensors)
    if (number, kernel) != (1, _CONVOLUTION_WIDTH):
        raise InvalidInput(
            f"{file.path}: its integrate-and-fire part (CIF) has {number} convolution{'s' if number > 1 else ''} of "
            f"{kernel} frames, but a head here has one of {_CONVOLUTION_WIDTH}",
            "import another released checkpoint; of these, only Large Cascaded+ on SpokenCOCO differs",
        )


def _hidden_widths(file: LightningFile, prefix: str) -> tuple[int, ...]:
    """The widths between the Linear layers of a projection, in their order. Empty if there is one layer."""
    if f"{prefix}weight" in file.tensors:
        return ()
    pattern = re.compile(re.escape(prefix) + r"sequential\.(\d+)\.weight")
    places = sorted(int(match[1]) for name in file.tensors if (match := pattern.fullmatch(name)))
    if not places or places != list(range(0, 3 * len(places), 3)):
        raise InvalidInput(
            f"{file.path}: lacks {prefix}weight, and {prefix}sequential has the places {places}", _RELEASED
        )
    return tuple(_size(file, f"{prefix}sequential.{place}.weight", 0) for place in places[:-1])


def _normalization(file: LightningFile, width: int, *, is_plus: bool) -> Normalization:
    """How the head normalises hidden states: as the config says, or else as published models of this width do it."""
    encoder = settings(file.config.get("audio_encoder"))
    if not encoder:
        return "s3prl" if width == 1024 and not is_plus else "none"
    if not encoder.get("normalize_hiddenstates", False):
        return "none"
    kind = _setting(file, "audio_encoder", "normalize_type") or "s3prl"
    if kind in _NORMALIZATIONS:
        return _NORMALIZATIONS[kind]
    raise InvalidInput(
        f"{file.path}: normalises hidden states by {kind!r}; only s3prl, method1 and method2 are known", _RELEASED
    )


def _check(file: LightningFile, wanted: Mapping[str, object], *path: str) -> None:
    """Raises `InvalidInput` if the config has at `path` another value than a `wanted` one."""
    for key, value in wanted.items():
        found = _setting(file, *path, key)
        if found is not None and found != value:
            raise InvalidInput(
                f"{file.path}: its {path[-1]} has {key} {found!r}, the published models have {value!r}", _RELEASED
            )


def _setting(file: LightningFile, *path: str) -> Any:
    """The number, flag or short text at `path` of the config, or None if nothing is there."""
    found: Any = file.config
    for key in path:
        found = settings(found).get(key)
    match found:
        case None | bool() | float():
            return found
        case int() if abs(found) < 1 << 63:
            return found
        case str() if len(found) <= _LONGEST:
            return found
    # A hostile file can hold tuples of tuples that share their content. Printing one of them would never end.
    kind = type(found).__name__
    raise InvalidInput(
        f"{file.path}: its config has {path[-1]} {'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}, which no official "
        "checkpoint has",
        f"{_RELEASED}; nothing of this file was used",
    )


def _count(file: LightningFile, default: int, *path: str) -> int:
    found = _setting(file, *path)
    return found if type(found) is int and found > 0 else default


def _fraction(file: LightningFile, *path: str) -> float:
    found = _setting(file, *path)
    return float(found) if type(found) in (int, float) and 0 <= found < 1 else 0.1


def _size(file: LightningFile, name: str, axis: int) -> int:
    shape = file.shape(name)
    if len(shape) <= axis:
        raise InvalidInput(f"{file.path}: {name} has the shape {shape}, too few axes for its name", _RELEASED)
    return shape[axis]
