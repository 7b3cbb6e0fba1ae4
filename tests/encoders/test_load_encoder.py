import msgspec
import pytest

from speechclip.encoders import load_encoder
from speechclip.errors import InvalidInput
from speechclip.records import to_json
from speechclip.spec import EncoderSpec

ALL = [
    ("toy", "speech"),
    ("toy", "image"),
    ("toy", "text"),
    ("hubert:untrained-tiny", "speech"),
    ("torchaudio:untrained-tiny", "speech"),
    ("whisper:untrained-tiny", "speech"),
    ("clip:untrained-tiny", "image"),
    ("clip:untrained-tiny", "text"),
]


@pytest.mark.parametrize(("source", "modality"), ALL)
def test_an_encoder_keeps_its_source_and_its_spec_survives_json(source, modality):
    encoder = load_encoder(source, modality, codec="fp32")
    assert encoder.encoder_name == source
    assert (encoder.spec.modality, encoder.spec.codec) == (modality, "fp32")
    assert "untrained" in encoder.spec.fingerprint
    again = msgspec.json.decode(to_json(encoder.spec), type=EncoderSpec)
    assert again == encoder.spec
    assert again.fingerprint == encoder.spec.fingerprint


def test_no_two_encoders_share_a_fingerprint():
    prints = {load_encoder(source, modality).spec.fingerprint for source, modality in ALL}
    prints |= {load_encoder("toy", "speech", layers=[0]).spec.fingerprint}
    prints |= {load_encoder("toy", "speech", codec="fp32").spec.fingerprint}
    assert len(prints) == len(ALL) + 2


@pytest.mark.parametrize("source", ["", "hubert", "hubert:", "toy:x", "bert:base", "clip"])
def test_a_string_outside_the_grammar_is_answered_with_the_grammar(source):
    with pytest.raises(InvalidInput, match="hubert:<hub id or folder>"):
        load_encoder(source, "speech")


@pytest.mark.parametrize(
    ("source", "modality"),
    [("hubert:untrained-tiny", "image"), ("clip:untrained-tiny", "speech"), ("timm:resnet18@x", "text")],
)
def test_a_modality_that_the_family_lacks_is_refused(source, modality):
    with pytest.raises(InvalidInput, match=f"not {modality}"):
        load_encoder(source, modality)


def test_layers_of_a_vector_are_refused():
    with pytest.raises(InvalidInput, match="no layers"):
        load_encoder("toy", "image", layers=[0])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("clip:ViT-B-32", "names no weights; write clip:ViT-B-32/ and a checkpoint file or one of openai,"),
        ("clip:ViT-B-33", "open_clip knows no model 'ViT-B-33'"),
        ("hubert:untraind-tiny", "or one of untrained-base, untrained-large, untrained-tiny, untrained-tiny-large"),
        ("whisper:untraind-tiny", "or one of untrained-tiny"),
    ],
)
def test_a_misspelt_name_is_answered_with_those_that_exist(source, words):
    with pytest.raises(InvalidInput) as refusal:
        load_encoder(source, "image" if source.startswith("clip") else "speech")
    assert words in str(refusal.value)


@pytest.mark.parametrize("source", ["hubert:untrained-huge", "clip:untrained-nothing", "clip:ViT-B-32/no-such-tag"])
def test_what_does_not_exist_is_refused_in_one_sentence(source):
    with pytest.raises(InvalidInput) as refusal:
        load_encoder(source, "speech" if source.startswith("hubert") else "image")
    assert str(refusal.value).startswith(source)
    assert "\n" not in str(refusal.value)
    assert refusal.value.__cause__ is None
