"""Writes checkpoints in the official layout, with random numbers.

Source: docs/model.md, "Official checkpoints".
The classes that their pickles name exist only while a file is written.
"""

import contextlib
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The sizes of small encoders: those of hubert:untrained-tiny and clip:untrained-tiny.
TINY = {"width": 96, "layers": 5, "joint": 64, "tokens": 49_408, "feed_forward": 384}
BASE = {"width": 768, "layers": 13, "joint": 512, "tokens": 49_408, "feed_forward": 3_072}
LARGE = {"width": 1_024, "layers": 25, "joint": 768, "tokens": 49_408, "feed_forward": 4_096}


class _Draw:
    """Draws random tensors, the same ones each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7122)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * 0.1


def parallel_state(sizes: dict[str, int]) -> OrderedDict[str, Tensor]:
    """The tensors of a parallel branch."""
    draw, width, inner = _Draw(), sizes["width"], sizes["feed_forward"]
    state = _layer("parallel_branch.self_att.model.", draw, width, inner)
    state["parallel_branch.cls"] = draw(1, 1, width)
    return state | _linear("parallel_branch.linear_proj", draw, width, sizes["joint"])


def cascaded_state(
    sizes: dict[str, int], *, hidden: int = 0, norm: str = "parallel", num_keywords: int = 8
) -> OrderedDict[str, Tensor]:
    """The tensors of a cascaded branch.

    With `hidden` the projection has two layers, with that width between them. `norm` is parallel, apart or same.
    """
    draw, joint = _Draw(), sizes["joint"]
    state = _block(draw, sizes["width"])
    state["cascaded_branch.cls"] = draw(1, num_keywords, sizes["width"])
    state |= _keywords(draw, sizes, hidden)
    if norm == "apart":
        for keyword in range(num_keywords):
            state |= _norm(f"cascaded_branch.bn_layer.bn_layers.{keyword}", draw, joint)
        return state
    return state | _norm("cascaded_branch.bn_layer.bn_layer", draw, joint * (num_keywords if norm == "parallel" else 1))


def plus_state(
    sizes: dict[str, int],
    *,
    is_hybrid: bool,
    has_cif: bool,
    hidden: int = 0,
    parallel_hidden: int = 0,
    is_transformer: bool = False,
    num_convolutions: int = 1,
    convolution_width: int = 3,
) -> OrderedDict[str, Tensor]:
    """The tensors of a SpeechCLIP+ branch: hybrid, or with CIF Cascaded+ or Hybrid+."""
    draw, width, joint = _Draw(), sizes["width"], sizes["joint"]
    if is_transformer:
        state = _layer("cascaded_branch.self_att.model.", draw, width, sizes["feed_forward"])
    else:
        state = _block(draw, width)
    state |= _keywords(draw, sizes, hidden)
    if is_hybrid:
        state |= _projection("cascaded_branch.parallel_proj", draw, width, parallel_hidden, joint)
        names = {"cls": 1} if has_cif else {"parallel_cls": 1, "cascaded_cls": 8}
        state |= {f"cascaded_branch.{name}": draw(1, count, width) for name, count in names.items()}
    if has_cif:
        for number in range(num_convolutions):
            # Each is followed by a dropout and a ReLU, which have no tensors.
            convolution = f"cascaded_branch.downsampling.conv.{3 * number}"
            state[f"{convolution}.weight"] = draw(width, width, convolution_width)
            state[f"{convolution}.bias"] = draw(width)
        state |= _linear("cascaded_branch.downsampling.weight_proj.1", draw, width, 1)
    return state | _norm("cascaded_branch.bn_layer.bn_layer", draw, joint if has_cif else 8 * joint)


def around(
    sizes: dict[str, int], *, tokens: Tensor, ids: Tensor, is_learnable: bool = False, frozen: bool = True
) -> OrderedDict[str, Tensor]:
    """The other tensors of a checkpoint: weighted sum, loss, CLIP's token embeddings and a few of the encoders."""
    draw, width, layers = _Draw(), sizes["width"], sizes["layers"]
    state: OrderedDict[str, Tensor] = OrderedDict()
    state["audio_encoder.weightedsum_layer.weights"] = draw(layers)
    if is_learnable:
        state["criterion.temperature"] = torch.tensor(2.659)
    eye = torch.eye(256, dtype=torch.bool)
    state |= {"criterion.eye_mat": eye, "criterion.neg_eye_mat": ~eye, "criterion.eye_mat_fl": eye.float()}
    state["clip.original_text_emb_weight"] = tokens
    state["clip.model.token_embedding.weight"] = tokens[ids]
    state["clip.model.positional_embedding"] = draw(77, tokens.shape[1])
    if frozen:
        hubert = "audio_encoder.encoder."
        state[f"{hubert}encoder.pos_conv.0.weight_g"] = draw(1, 1, 128)
        state[f"{hubert}encoder.pos_conv.0.weight_v"] = draw(width, width // 16, 128)
        state[f"{hubert}final_proj.weight"] = draw(256, width)
        state[f"{hubert}label_embs_concat"] = draw(504, 256)
    return state


def write_checkpoint(
    path: Path,
    branch: OrderedDict[str, Tensor],
    rest: OrderedDict[str, Tensor],
    config: dict[str, Any] | None = None,
    **more: object,
) -> Path:
    """Write a file as `Trainer.save_checkpoint` of Lightning 1.5.10 does. `more` replaces entries of its dict."""
    state = OrderedDict({**rest, **branch})
    if "cascaded_branch.linear_proj.weight" in branch or "cascaded_branch.linear_proj.sequential.0.weight" in branch:
        # The official branch holds CLIP too. So CLIP's tensors have two names and are stored once.
        state |= {f"cascaded_branch.{name}": value for name, value in rest.items() if name.startswith("clip.")}
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    with official_classes() as (namespace, logger):
        content = {
            "epoch": 58,
            "global_step": 6_902,
            "pytorch-lightning_version": "1.5.10",
            "state_dict": state,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 59}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'val_recall_mean_10'}": {
                    "best_model_score": torch.tensor(0.4),
                    "dirpath": "exp",
                }
            },
            "optimizer_states": [
                {"state": {0: {"step": 6_902, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}
            ],
            "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 6_902}],
            "native_amp_scaling_state": {"scale": 65536.0, "_growth_tracker": 11},
            "hparams_name": "kwargs",
            "hyper_parameters": {"config": namespace((config or {}) | {"trainer": {"logger": logger}})},
        } | more
        torch.save(content, path)
    return path


@contextlib.contextmanager
def official_classes() -> Iterator[tuple[Any, Any]]:
    """The class OrderedNamespace and a logger, in modules with the official names. Afterwards the modules are gone."""

    class OrderedNamespace:
        def __init__(self, content: dict[str, Any]) -> None:
            wrapped = {
                key: OrderedNamespace(value) if isinstance(value, dict) else value for key, value in content.items()
            }
            object.__setattr__(self, "_odict", OrderedDict(wrapped))

        def __getstate__(self) -> Any:
            return self._odict  # type: ignore[attr-defined]

    class WandbLogger:
        def __init__(self) -> None:
            self._project, self._save_dir = "sphclip", Path("exp")

    modules = {"avssl.base.ordered_namespace": OrderedNamespace, "pytorch_lightning.loggers.wandb": WandbLogger}
    parts = [".".join(name.split(".")[: depth + 1]) for name in modules for depth in range(len(name.split(".")))]
    made = {part: types.ModuleType(part) for part in parts}
    assert not made.keys() & sys.modules.keys()
    for name, kind in modules.items():
        kind.__module__, kind.__qualname__ = name, kind.__name__
        setattr(made[name], kind.__name__, kind)
    sys.modules.update(made)
    try:
        yield OrderedNamespace, WandbLogger()
    finally:
        for part in made:
            del sys.modules[part]


def _keywords(draw: _Draw, sizes: dict[str, int], hidden: int) -> OrderedDict[str, Tensor]:
    """The tensors of the projection and the quantizer."""
    state = _projection("cascaded_branch.linear_proj", draw, sizes["width"], hidden, sizes["joint"])
    state["cascaded_branch.vector_quantizer.curr_temp"] = torch.tensor([0.1])
    return state


def _projection(prefix: str, draw: _Draw, width: int, hidden: int, out: int) -> OrderedDict[str, Tensor]:
    """The tensors of one linear layer, or of two with the official names."""
    if not hidden:
        return _linear(prefix, draw, width, out)
    return _linear(f"{prefix}.sequential.0", draw, width, hidden) | _linear(f"{prefix}.sequential.3", draw, hidden, out)


def _block(draw: _Draw, width: int) -> OrderedDict[str, Tensor]:
    prefix = "cascaded_branch.self_att."
    state = _attention(f"{prefix}multihead_attn_layer", draw, width)
    return state | _affine(f"{prefix}attentionBlock_Norm", draw, width)


def _layer(prefix: str, draw: _Draw, width: int, inner: int) -> OrderedDict[str, Tensor]:
    state = _attention(f"{prefix}layers.0.self_attn", draw, width)
    state |= _linear(f"{prefix}layers.0.linear1", draw, width, inner)
    state |= _linear(f"{prefix}layers.0.linear2", draw, inner, width)
    for name in ("layers.0.norm1", "layers.0.norm2", "norm"):
        state |= _affine(f"{prefix}{name}", draw, width)
    return state


def _attention(prefix: str, draw: _Draw, width: int) -> OrderedDict[str, Tensor]:
    state: OrderedDict[str, Tensor] = OrderedDict()
    state[f"{prefix}.in_proj_weight"] = draw(3 * width, width)
    state[f"{prefix}.in_proj_bias"] = draw(3 * width)
    return state | _linear(f"{prefix}.out_proj", draw, width, width)


def _linear(prefix: str, draw: _Draw, width: int, out: int) -> OrderedDict[str, Tensor]:
    return OrderedDict({f"{prefix}.weight": draw(out, width), f"{prefix}.bias": draw(out)})


def _affine(prefix: str, draw: _Draw, width: int) -> OrderedDict[str, Tensor]:
    return OrderedDict({f"{prefix}.weight": 1 + draw(width), f"{prefix}.bias": draw(width)})


def _norm(prefix: str, draw: _Draw, width: int) -> OrderedDict[str, Tensor]:
    state = _affine(prefix, draw, width)
    state |= {f"{prefix}.running_mean": draw(width), f"{prefix}.running_var": 1 + draw(width).abs()}
    state[f"{prefix}.num_batches_tracked"] = torch.tensor(6_902)
    return state
