"""Makes a run from the head in an official checkpoint (docs/heads.md, "Official checkpoints").

The run names the encoders that the head was trained with. Their weights are compared with those in the file.
"""

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
# The catalog version of an imported run. It was trained without a store, so it has none.
NO_VERSION = -1
# The places of the vocabulary that the official code never chooses as a keyword. In the official vocabularies they
# hold padding, start and end.
EXCLUDED_PLACES = (0, 2, 3)


@dataclass(frozen=True)
class Imported:
    """What an import did.

    `info` describes the run that it wrote, `layout` the head that it found. `num_parameters` counts the trained numbers
    of the head and its loss. `epoch` is the epoch in the file, counted from 0. Each of `notes` is a sentence about
    something that the run cannot reproduce.
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
    """Write the head of a SpeechCLIP or SpeechCLIP+ checkpoint as a run into the new folder `out`.

        >>> import_checkpoint("epoch=131-step=15443.ckpt", "runs/base").info.identity.recipe.name
        'base-parallel-flickr8k'

    `speech` and `image` are encoder names. The default is the encoder of the published model of that size. `codec` says
    how the store keeps their features. `recipe` is a recipe's name; the default is the published one of this model.

    Raises `InvalidInput` and writes nothing if something does not fit, for example if the file holds other encoder
    weights than the named encoders have.
    """
    folder = RunFolder(out)
    if folder.finished() is not None or folder.steps():
        raise InvalidInput(f"{out}: holds a run already", "import into a new folder")
    with LightningFile(path) as file:
        layout = describe(file)
        chosen = _choose_recipe(path, layout, recipe)
        speech_encoder, image_encoder, notes = _load_encoders(file, layout, speech, image, codec)
        text = load_text_weights(image_encoder.encoder_name) if isinstance(layout.head, KeywordConfig) else None
        vocabulary = find_vocabulary(file, text, image_encoder.encoder_name) if text else None
        identity = RunIdentity(
            manifest="",
            catalog_version=NO_VERSION,
            speech=FeatureSetRef.of(speech_encoder.spec, speech_encoder.encoder_name),
            image=FeatureSetRef.of(image_encoder.spec, image_encoder.encoder_name),
            recipe=chosen,
            head=layout.head,
            text=FeatureSetRef.of(text.spec, image_encoder.encoder_name) if text else None,
            vocabulary=vocabulary.digest if vocabulary else "",
            imported=file.sha256(),
        )
        tensors = _read_head(file, layout)
        num_parameters = _check_head(path, layout, tensors, text, vocabulary)
        epoch, step = file.epoch, file.step
    notes += _differences(layout, speech_encoder, vocabulary)
    if vocabulary:
        folder.write_vocabulary(vocabulary)
    info = _describe_run(identity, step)
    return Imported(folder.finish(info, tensors), layout, num_parameters, epoch, tuple(notes))


def _describe_run(identity: RunIdentity, step: int) -> RunInfo:
    """The record of a run whose only known step is `step`."""
    return RunInfo(
        identity=identity,
        num_rows=0,
        num_missing=0,
        batch_size=identity.recipe.batch_size,
        num_steps=step,
        order_digest="",
        head_step=step,
        best=None,
        head_sha256="",
    )


def _load_encoders(
    file: LightningFile, layout: Layout, speech: str | None, image: str | None, codec: CodecName
) -> tuple[Encoder, Encoder, list[str]]:
    """The encoders of speech and images, shown to fit the file, and notes about them."""
    speech_name = _choose_encoder(file.path, layout, "speech", speech, SPEECH_OF)
    image_name = _choose_encoder(file.path, layout, "image", image, IMAGE_OF)
    speech_encoder = load_encoder(speech_name, "speech", codec=codec)
    image_encoder = load_encoder(image_name, "image", codec=codec)
    _check_sizes(file.path, layout, speech_encoder, image_encoder)
    notes = _check_weights(file, _hubert_pairs(file, speech_encoder), speech_encoder, "--speech")
    return (
        speech_encoder,
        image_encoder,
        notes + _check_weights(file, _clip_pairs(image_encoder), image_encoder, "--image"),
    )


def _differences(layout: Layout, speech_encoder: Encoder, vocabulary: Vocabulary | None) -> list[str]:
    """Notes on what a head from this file computes otherwise than the official code."""
    notes = []
    if layout.is_waveform_normalized and speech_encoder.spec.rules.get("waveform") == "raw/1":
        notes.append(
            "this head was trained on waveforms of mean 0 and variance 1, but "
            f"{speech_encoder.encoder_name} gets raw ones"
        )
    if vocabulary and [vocabulary.ids[place] for place in EXCLUDED_PLACES] != [PADDING, START, END]:
        notes.append(
            "the official code never chooses places 0, 2 and 3 of the vocabulary as keywords; here padding, start and "
            "end are never chosen"
        )
    return notes


def find_vocabulary(file: LightningFile, text: TextWeights, source: str) -> Vocabulary:
    """The vocabulary of the head: the token id of each row of the reduced token embedding, in the file's order.

    The file does not store the ids. Each row is looked up by its bytes in the whole token embedding that the file holds
    too, and the place there is the id. `source` is the encoder name of the CLIP that has the weights `text`.
    """
    file.shape(TOKENS)
    every = file.read(ALL_TOKENS)
    own = text.tensors["token_embedding.weight"]
    if not _is_same(every, own):
        raise InvalidInput(
            f"{file.path}: a checkpoint of another vocabulary: its CLIP has {len(every):,} tokens of width "
            f"{every.shape[-1]} with other numbers than the {len(own):,} of width {own.shape[-1]} of {source}",
            "name the CLIP that it was trained with (--image)",
        )
    places: dict[bytes, int] = {}
    twice: set[bytes] = set()
    for place, digest in enumerate(_row_digests(every)):
        if places.setdefault(digest, place) != place:
            twice.add(digest)
    wanted = _row_digests(file.read(TOKENS))
    lost = [row for row, digest in enumerate(wanted) if digest not in places]
    if lost or twice & set(wanted) or len(set(wanted)) != len(wanted):
        fault = f"row {lost[0]} is none of CLIP's tokens" if lost else "two of its rows are the same"
        raise InvalidInput(f"{file.path}: its vocabulary can't be recovered: in {TOKENS}, {fault}", "download it again")
    return Vocabulary(ids=tuple(places[digest] for digest in wanted))


def _row_digests(rows: Tensor) -> list[bytes]:
    data = np.ascontiguousarray(rows.float().numpy())
    return [hashlib.sha256(row.tobytes()).digest() for row in data]


def _choose_encoder(path: str, layout: Layout, side: str, given: str | None, published: Mapping[str, str]) -> str:
    if given or layout.size:
        return given or published[layout.size]
    raise InvalidInput(f"{path}: no published model has the width {layout.head.width}", f"name the encoder by --{side}")


def _choose_recipe(path: str, layout: Layout, given: str | None) -> Recipe:
    """The recipe `given`, or the published one of this model, with each setting that the file shows."""
    name = given or layout.recipe
    if not name:
        raise InvalidInput(
            f"{path}: the model is none of the published ones, so no recipe is known", "name the nearest by --recipe"
        )
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
        head=layout.kind,
        normalize_states=head.normalize,
        num_heads=head.num_heads,
        dropout=head.dropout,
        is_temperature_learnable=TEMPERATURE in layout.names,
        **shown,
    )


def _check_sizes(path: str, layout: Layout, speech_encoder: Encoder, image_encoder: Encoder) -> None:
    head, speech = layout.head, speech_encoder.spec
    if (len(speech.layers), speech.width) != (head.num_layers, head.width):
        raise InvalidInput(
            f"{path}: the head takes {head.num_layers} states of width {head.width}, "
            f"{speech_encoder.encoder_name} gives {len(speech.layers)} of width {speech.width}",
            "name the encoder that it was trained with (--speech)",
        )
    if image_encoder.spec.width != head.image_width:
        raise InvalidInput(
            f"{path}: the head needs image vectors of width {head.image_width}, {image_encoder.encoder_name} gives "
            f"{image_encoder.spec.width}",
            "name the CLIP that it was trained with (--image)",
        )


def _hubert_pairs(file: LightningFile, speech_encoder: Encoder) -> dict[str, Tensor | None]:
    """Three names of HuBERT tensors in a file, each with the tensor that the encoder has in that place.

    The file has fairseq's names, the encoder those of transformers. The tensor is None if the encoder has none there.
    """
    last = len(speech_encoder.spec.layers) - 2
    names = {
        "feature_extractor.conv_layers.0.0.weight": "feature_extractor.conv_layers.0.conv.weight",
        "encoder.layers.0.self_attn.q_proj.weight": "encoder.layers.0.attention.q_proj.weight",
        f"encoder.layers.{last}.fc2.weight": f"encoder.layers.{last}.feed_forward.output_dense.weight",
    }
    own = speech_encoder.weights() if isinstance(speech_encoder, HubertEncoder) else {}
    return {f"audio_encoder.encoder.{official}": own.get(name) for official, name in names.items()}


def _clip_pairs(image_encoder: Encoder) -> dict[str, Tensor | None]:
    """As `_hubert_pairs`, for two tensors of CLIP's image tower."""
    own = image_encoder.weights() if isinstance(image_encoder, VectorEncoder) else {}
    return {f"clip.model.{name}": own.get(name) for name in ("visual.conv1.weight", "visual.proj")}


def _check_weights(file: LightningFile, pairs: Mapping[str, Tensor | None], encoder: Encoder, option: str) -> list[str]:
    """Compare encoder weights in the file with those of the named encoder.

    If they differ, an untrained encoder gives a note and a trained one raises `InvalidInput`.
    """
    for official, own in pairs.items():
        if official not in file.tensors or (own is not None and _is_same(file.read(official), own)):
            continue
        if not encoder.spec.is_trained:
            return [
                f"{encoder.encoder_name} is untrained and the head was trained with other weights: this run's "
                "embeddings mean nothing"
            ]
        raise InvalidInput(
            f"{file.path}: the checkpoint was trained on other weights than {option} {encoder.encoder_name} "
            f"({official} differs)",
            "name the encoder that it was trained on",
        )
    return []


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether both tensors are equal after rounding to fp16, because some weights are published in fp16."""
    return one.shape == other.shape and torch.equal(one.half(), other.cpu().half())


def _read_head(file: LightningFile, layout: Layout) -> dict[str, Tensor]:
    """The head's tensors by our names. Floating-point numbers become fp32."""
    tensors = {}
    for name, official in layout.names.items():
        tensor = file.read(official)
        if not tensor.isfinite().all():
            raise InvalidInput(
                f"{file.path}: {official} holds numbers that are not finite, so its training had diverged",
                "import another checkpoint",
            )
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def _check_head(
    path: str, layout: Layout, tensors: Mapping[str, Tensor], text: TextWeights | None, vocabulary: Vocabulary | None
) -> int:
    """The number of trained parameters. Raises `InvalidInput` unless the tensors are exactly those of the head."""
    head = layout.head.build(build_tower(text, vocabulary) if text and vocabulary else None)
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith(CRITERION)}
    wrong = [f"{name} is {found.get(name, 'missing')}" for name in wanted if found.get(name) != wanted[name]]
    wrong += [f"{layout.names[name]} is unknown" for name in found if name not in wanted]
    if wrong:
        shown = ", ".join(wrong[:6])
        raise InvalidInput(
            f"{path}: tensors do not fit a {layout.kind} head ({len(wrong)} in all): {shown}",
            "import a checkpoint that the authors of SpeechCLIP or SpeechCLIP+ released",
        )
    return sum(parameter.numel() for parameter in head.parameters()) + (TEMPERATURE in tensors)
