"""From an official checkpoint to a run of ours: the head alone, bound to encoders that are shown to be its own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from speechclip.encoders.base import Encoder
from speechclip.encoders.clip import TextWeights, load_text_weights
from speechclip.encoders.hubert import HubertEncoder
from speechclip.encoders.load import load_encoder
from speechclip.encoders.vector import VectorEncoder
from speechclip.errors import InvalidInput
from speechclip.heads import KeywordConfig
from speechclip.official.layout import ALL_TOKENS, TEMPERATURE, TOKENS, Layout, describe
from speechclip.official.lightning import LightningFile
from speechclip.spec import CodecName
from speechclip.training.checkpoint import CRITERION, RunFolder
from speechclip.training.identity import FeatureSetRef, RunIdentity, RunInfo
from speechclip.training.recipe import Recipe, load_recipe
from speechclip.training.run import build_tower
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary

SPEECH_OF = {"base": "hubert:facebook/hubert-base-ls960", "large": "hubert:facebook/hubert-large-ll60k"}
IMAGE_OF = {"base": "clip:ViT-B-32/openai", "large": "clip:ViT-L-14/openai"}
# What an imported run has instead of a catalog version: it was trained from no store.
NO_VERSION = -1
# What the official code bars from being a keyword, in its vocabularies the padding, start and end.
BARRED_PLACES = (0, 2, 3)


@dataclass(frozen=True)
class Imported:
    """The run that an import wrote, what was found in the file, and the head's number of trained parameters.

    `epoch` is the file's. `notes` are sentences on what the run can't reproduce.
    """

    info: RunInfo
    layout: Layout
    num_parameters: int
    epoch: int
    notes: tuple[str, ...]


def import_checkpoint(
    path: str,
    out: str,
    *,
    speech: str | None = None,
    image: str | None = None,
    recipe: str | None = None,
    codec: CodecName = "fp16",
) -> Imported:
    """Write the head in a Lightning checkpoint of SpeechCLIP or SpeechCLIP+ to the new run folder `out`.

    `speech` and `image` are SPECs, by default those of the published model of that size; `codec` is how the store keeps
    their features. Weights of the encoders that the file holds must be those of the SPECs. `InvalidInput` where
    anything does not fit, and then nothing is written.
    """
    folder = RunFolder(out)
    if folder.finished() is not None or folder.steps():
        raise InvalidInput(f"{out}: holds a run already; import into a new folder")
    with LightningFile(path) as file:
        layout = describe(file)
        chosen = _choose_recipe(path, layout, recipe)
        notes: list[str] = []
        ears = load_encoder(_choose_spec(path, layout, "speech", speech, SPEECH_OF), "speech", codec=codec)
        eyes = load_encoder(_choose_spec(path, layout, "image", image, IMAGE_OF), "image", codec=codec)
        _check_sizes(path, layout, ears, eyes)
        notes += _check_weights(file, _hubert_pairs(file, ears), ears, "--speech")
        notes += _check_weights(file, _clip_pairs(eyes), eyes, "--image")
        if layout.is_waveform_normalized and ears.spec.rules.get("waveform") == "raw/1":
            notes.append(f"trained on waveforms of mean 0 and variance 1, which {ears.encoder_name} takes as they are")
        text = load_text_weights(eyes.encoder_name) if isinstance(layout.head, KeywordConfig) else None
        vocabulary = find_vocabulary(file, text, eyes.encoder_name) if text else None
        if vocabulary and [vocabulary.ids[place] for place in BARRED_PLACES] != [PADDING, START, END]:
            notes.append(
                "officially no keyword is token 0, 2 or 3 of the vocabulary, here none is padding, start or end"
            )
        identity = RunIdentity(
            manifest="",
            catalog_version=NO_VERSION,
            speech=FeatureSetRef.of(ears.spec, ears.encoder_name),
            image=FeatureSetRef.of(eyes.spec, eyes.encoder_name),
            recipe=chosen,
            head=layout.head,
            text=FeatureSetRef.of(text.spec, eyes.encoder_name) if text else None,
            vocabulary=vocabulary.digest if vocabulary else "",
            imported=file.sha256(),
        )
        tensors = _read_head(file, layout)
        num_parameters = _check_head(path, layout, tensors, text, vocabulary)
        epoch, step = file.epoch, file.step
    if vocabulary:
        folder.write_vocabulary(vocabulary)
    info = RunInfo(
        identity=identity,
        num_rows=0,
        num_missing=0,
        batch_size=chosen.batch_size,
        num_steps=step,
        order_digest="",
        head_step=step,
        best=None,
        head_sha256="",
    )
    return Imported(folder.finish(info, tensors), layout, num_parameters, epoch, tuple(notes))


def find_vocabulary(file: LightningFile, text: TextWeights, source: str) -> Vocabulary:
    """The token ids of the reduced embedding's rows, each found by its bytes among all of CLIP's."""
    file.shape(TOKENS)
    every = file.read(ALL_TOKENS)
    own = text.tensors["token_embedding.weight"]
    if not _is_same(every, own):
        raise InvalidInput(
            f"{file.path}: a checkpoint of another vocabulary: its CLIP has {len(every):,} tokens of width "
            f"{every.shape[-1]} with other numbers than the {len(own):,} of width {own.shape[-1]} of {source}; "
            "name the CLIP that it was trained with (--image)"
        )
    places: dict[bytes, int] = {}
    twice: set[bytes] = set()
    for place, digest in enumerate(_row_digests(every)):
        if places.setdefault(digest, place) != place:
            twice.add(digest)
    wanted = _row_digests(file.read(TOKENS))
    lost = [row for row, digest in enumerate(wanted) if digest not in places]
    if lost or twice & set(wanted) or len(set(wanted)) != len(wanted):
        what = f"row {lost[0]} is none of CLIP's tokens" if lost else "two of its rows are the same"
        raise InvalidInput(f"{file.path}: its vocabulary can't be recovered: of {TOKENS} {what}; fetch the file again")
    return Vocabulary(ids=tuple(places[digest] for digest in wanted))


def _row_digests(rows: Tensor) -> list[bytes]:
    data = np.ascontiguousarray(rows.float().numpy())
    return [hashlib.sha256(row.tobytes()).digest() for row in data]


def _choose_spec(path: str, layout: Layout, side: str, given: str | None, published: Mapping[str, str]) -> str:
    if given or layout.size:
        return given or published[layout.size]
    raise InvalidInput(f"{path}: width {layout.head.width} is of no published model; name the encoder by --{side}")


def _choose_recipe(path: str, layout: Layout, given: str | None) -> Recipe:
    """The published recipe of that model, its choices those that the file shows."""
    name = given or layout.recipe
    if not name:
        raise InvalidInput(f"{path}: of no published model, so no recipe is known; name the nearest by --recipe")
    head = layout.head
    shown: dict[str, Any] = {"image_projection": False, "embedding_width": None}
    if isinstance(head, KeywordConfig):
        shown |= {
            "num_keywords": head.num_keywords,
            "block": head.block,
            "keyword_projection": head.projection,
            "parallel_projection": head.parallel_projection,
            "keyword_norm": head.batch_norm,
        }
    return msgspec.structs.replace(
        load_recipe(name),
        head=layout.setting,
        normalize_states=head.normalize,
        num_heads=head.num_heads,
        dropout=head.dropout,
        is_temperature_learnable=TEMPERATURE in layout.names,
        **shown,
    )


def _check_sizes(path: str, layout: Layout, ears: Encoder, eyes: Encoder) -> None:
    head = layout.head
    if (len(ears.spec.layers), ears.spec.width) != (head.num_layers, head.width):
        raise InvalidInput(
            f"{path}: the head takes {head.num_layers} states of width {head.width}, {ears.encoder_name} gives "
            f"{len(ears.spec.layers)} of width {ears.spec.width}; name the encoder that it was trained with (--speech)"
        )
    if eyes.spec.width != head.image_width:
        raise InvalidInput(
            f"{path}: the head meets image vectors of width {head.image_width}, {eyes.encoder_name} gives "
            f"{eyes.spec.width}; name the CLIP that it was trained with (--image)"
        )


def _hubert_pairs(file: LightningFile, ears: Encoder) -> dict[str, Tensor | None]:
    """Some of the file's HuBERT tensors (fairseq's names), with the encoder's own, None where it has none such."""
    last = len(ears.spec.layers) - 2
    names = {
        "feature_extractor.conv_layers.0.0.weight": "feature_extractor.conv_layers.0.conv.weight",
        "encoder.layers.0.self_attn.q_proj.weight": "encoder.layers.0.attention.q_proj.weight",
        f"encoder.layers.{last}.fc2.weight": f"encoder.layers.{last}.feed_forward.output_dense.weight",
    }
    own = ears.weights() if isinstance(ears, HubertEncoder) else {}
    return {f"audio_encoder.encoder.{official}": own.get(name) for official, name in names.items()}


def _clip_pairs(eyes: Encoder) -> dict[str, Tensor | None]:
    """The same of CLIP's image tower."""
    own = eyes.weights() if isinstance(eyes, VectorEncoder) else {}
    return {f"clip.model.{name}": own.get(name) for name in ("visual.conv1.weight", "visual.proj")}


def _check_weights(file: LightningFile, pairs: Mapping[str, Tensor | None], encoder: Encoder, option: str) -> list[str]:
    """A note where an untrained stand-in is not the encoder in the file; `InvalidInput` where a trained one is not."""
    for official, own in pairs.items():
        if official not in file.tensors or (own is not None and _is_same(file.read(official), own)):
            continue
        if not encoder.spec.is_trained:
            return [f"{encoder.encoder_name} stands in for other, trained weights: this run's embeddings mean nothing"]
        raise InvalidInput(
            f"{file.path}: the checkpoint was trained on other weights than {option} {encoder.encoder_name} "
            f"({official} differs); name those that it was trained on"
        )
    return []


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Equal once both are rounded to fp16, in which some publish their weights."""
    return one.shape == other.shape and torch.equal(one.half(), other.cpu().half())


def _read_head(file: LightningFile, layout: Layout) -> dict[str, Tensor]:
    """The head's tensors by our names, numbers in fp32."""
    tensors = {}
    for name, official in layout.names.items():
        tensor = file.read(official)
        if not tensor.isfinite().all():
            raise InvalidInput(f"{file.path}: {official} holds numbers that are not finite; the run had diverged")
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def _check_head(
    path: str, layout: Layout, tensors: Mapping[str, Tensor], text: TextWeights | None, vocabulary: Vocabulary | None
) -> int:
    """The number of trained parameters; `InvalidInput` unless the tensors are exactly those of the head."""
    head = layout.head.build(build_tower(text, vocabulary) if text and vocabulary else None)
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith(CRITERION)}
    wrong = [f"{name} is {found.get(name, 'missing')}" for name in wanted if found.get(name) != wanted[name]]
    wrong += [f"{layout.names[name]} is unknown" for name in found if name not in wanted]
    if wrong:
        raise InvalidInput(f"{path}: does not fit a {layout.setting} head: {'; '.join(wrong[:6])} ({len(wrong)} such)")
    return sum(parameter.numel() for parameter in head.parameters()) + (TEMPERATURE in tensors)
