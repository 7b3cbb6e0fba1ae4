"""The stored specs: `spec.json` of each feature set, with the encoder name that made it."""

import msgspec

from speechclip.errors import Damaged, InvalidInput, NotStored
from speechclip.records import Checksummed, from_json, to_json
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.layout import spec_path

_ENCODE_AGAIN = "featurize again with the same encoder"


class StoredSpec(Checksummed, frozen=True, kw_only=True):
    """The content of `spec.json`: the spec, and the encoder name that was given when the set was first computed."""

    spec: EncoderSpec
    encoder_name: str = msgspec.field(name="source")


def read_spec(storage: Storage, fingerprint: str) -> StoredSpec:
    """The stored spec of a feature set. Raises `NotStored` if the store has none."""
    path = spec_path(fingerprint)
    try:
        found = from_json(storage.read(path), StoredSpec)
    except FileNotFoundError:
        raise NotStored(f"{storage.root}: no feature set {fingerprint}") from None
    except (msgspec.DecodeError, InvalidInput) as error:
        raise Damaged(f"{path}: {error}", _ENCODE_AGAIN) from None
    if found.spec.fingerprint != fingerprint:
        raise Damaged(f"{path}: not the spec that its path names", _ENCODE_AGAIN)
    return found


def add_spec(storage: Storage, spec: EncoderSpec, encoder_name: str) -> None:
    """Store the spec of a feature set, unless it is there. Replace it if it is damaged.

    A replacement is safe, because the path holds the fingerprint and so proves that this is the right spec.
    """
    data = to_json(StoredSpec(spec=spec, encoder_name=encoder_name).with_checksum())
    if not storage.create(spec_path(spec.fingerprint), data):
        try:
            read_spec(storage, spec.fingerprint)
        except Damaged:
            storage.replace(spec_path(spec.fingerprint), data)
