"""A finished run, loaded to make embeddings, and how the head of a run is built.

trained = load_run("demo/run")
trained.info.identity.recipe.name  # "demo-parallel"
trained.head                       # a torch module in eval mode
"""

from dataclasses import dataclass

from speechclip.encoders import load_encoder
from speechclip.encoders.clip import TextWeights, load_text_weights
from speechclip.errors import InvalidInput
from speechclip.heads import Head, TextTower
from speechclip.spec import CodecName, EncoderSpec
from speechclip.training.checkpoint import CRITERION, HEAD, RUN, RunFolder
from speechclip.training.identity import RunIdentity, RunInfo
from speechclip.training.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """A finished run. Its head is on the CPU and in eval mode. `vocabulary` is None for a head without keywords."""

    info: RunInfo
    head: Head
    vocabulary: Vocabulary | None = None


def load_run(uri: str) -> Run:
    """The finished run in a folder, local or `s3://`; `InvalidInput` if the folder has none."""
    folder = RunFolder(uri)
    info = folder.finished()
    if info is None:
        raise InvalidInput(f"{uri}: no finished run ({RUN} is missing)", f"run `speechclip train --out {uri}`")
    weights = folder.read_tensors(HEAD, info.head_sha256)
    vocabulary = folder.read_vocabulary(info.identity)
    head = build_head(info.identity, vocabulary)
    head.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(CRITERION)})
    return Run(info, head.eval(), vocabulary)


def build_head(identity: RunIdentity, vocabulary: Vocabulary | None) -> Head:
    """A new head with random weights. One with keywords contains the text tower of the run's CLIP.

    `InvalidInput` if the CLIP of that name has other weights on this machine than the run's.
    """
    if vocabulary is None:
        return identity.head.build()
    assert identity.text is not None
    text = load_text_weights(identity.text.encoder_name, identity.text.codec)
    if text.spec.fingerprint != identity.text.fingerprint:
        raise InvalidInput(
            f"{identity.text.encoder_name} is {text.spec.fingerprint} here, but the head was trained on "
            f"{identity.text.fingerprint}",
            "give the weights that it was trained with",
        )
    return identity.head.build(build_tower(text, vocabulary))


def build_tower(text: TextWeights, vocabulary: Vocabulary) -> TextTower:
    """The text tower of a CLIP, with the token embeddings of this vocabulary only."""
    return TextTower(
        text.tensors, num_heads=text.num_heads, is_quick_gelu=text.is_quick_gelu, vocabulary=vocabulary.ids
    )


def find_tower(encoder_name: str, image: EncoderSpec, codec: CodecName) -> EncoderSpec:
    """The spec of the text tower that belongs to stored image vectors.

    `image` is the spec of those vectors, `codec` the codec of the texts that the result will be compared with.
    `InvalidInput` if the CLIP of that name has other weights on this machine than the stored images'.
    """
    text = load_text_weights(encoder_name, codec).spec
    found = load_encoder(encoder_name, "image", codec=image.codec).spec
    if found.weights != image.weights:
        raise InvalidInput(
            f"{encoder_name} is {found.fingerprint} here, the stored images are {image.fingerprint}: keywords need the "
            "text tower of the same CLIP",
            "give the weights that the store was made with",
        )
    return text
