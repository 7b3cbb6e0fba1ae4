"""Encode lost features again, from the sources that the store's manifests name."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from speechclip.errors import Damaged, SpeechClipError
from speechclip.featurization.driver import Work
from speechclip.featurization.plan import TaskSizes, cover, open_plan
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import Receipt
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore
from speechclip.store.layout import MANIFESTS, digest_in
from speechclip.upkeep.catalog_rows import rows_of_files
from speechclip.upkeep.findings import Finding, keys_of
from speechclip.upkeep.replace_lost import replace_lost

# Runs the tasks of a plan and gives their receipts.
Encode = Callable[[Work], Iterator[Receipt]]
# How to build the encoder of each feature set.
Encoders = Mapping[str, tuple[EncoderRequest, EncoderSpec]]


def encode_lost(
    store: FeatureStore, lost: Sequence[Finding], encode: Encode, sizes: TaskSizes, problems: list[str]
) -> tuple[int, list[Finding]]:
    """Encode the keys of these findings again and put the features in their places.

    Returns how many were encoded, and the findings that remain. Adds a sentence to `problems` for each feature set with
    keys that are still lost.
    """
    encoders = {name: found for name in keys_of(lost) if (found := _encoder(store, name, problems)) is not None}
    if not encoders:
        return 0, list(lost)
    rows = rows_of_files(store.catalog, lost)
    encoded: set[tuple[str, str]] = set()
    reasons: dict[tuple[str, str], str] = {}
    for manifest in _readable_manifests(store):
        work = _work(store, manifest, encoders, lost, sizes)
        receipts = list(encode(work))
        encoded |= {(receipt.feature_set, entry.key) for receipt in receipts for entry in receipt.stored}
        reasons |= {
            (receipt.feature_set, entry.key): entry.detail for receipt in receipts for entry in receipt.rejected
        }
        lost = replace_lost(store, lost, rows, receipts, work.job)
    for name, keys in keys_of(lost).items():
        if name in encoders:
            problems += _why_lost(store, name, keys, encoded, reasons)
    return len(encoded), list(lost)


def _encoder(store: FeatureStore, name: str, problems: list[str]) -> tuple[EncoderRequest, EncoderSpec] | None:
    """How to build the encoder of a feature set; None, with a problem, if this machine can't build the same one."""
    kept = store.read_spec(name)
    if kept.spec.is_of_head:
        problems.append(
            f"{name}: a tagged version has damaged embeddings; delete the tag and run `speechclip embed` again"
        )
        return None
    request = EncoderRequest.again(kept.spec, kept.encoder_name)
    try:
        found = request.build().spec
    except SpeechClipError as error:
        problems.append(f"{name}: {error}")
        return None
    if found != kept.spec:
        problems.append(
            f"{name}: {kept.encoder_name} gives {found.fingerprint} on this machine; repair where the same weights are"
        )
        return None
    return request, kept.spec


def _work(
    store: FeatureStore, manifest: Manifest, encoders: Encoders, lost: Sequence[Finding], sizes: TaskSizes
) -> Work:
    """A plan for the lost keys that this manifest names."""
    snapshot, wanted = store.snapshot(), keys_of(lost)
    coverage = []
    for name, (_, spec) in encoders.items():
        missing = tuple(asset for asset in manifest.assets(spec.modality) if asset.key in wanted.get(name, ()))
        coverage.append(dataclasses.replace(cover(manifest, spec, snapshot), missing=missing))
    return Work(
        store,
        manifest,
        requests={name: request for name, (request, _) in encoders.items()},
        specs={name: spec for name, (_, spec) in encoders.items()},
        before=tuple(coverage),
        plan=open_plan(store, manifest, coverage, snapshot, sizes),
    )


def _why_lost(
    store: FeatureStore,
    name: str,
    keys: Collection[str],
    encoded: Collection[tuple[str, str]],
    reasons: Mapping[tuple[str, str], str],
) -> Iterator[str]:
    """Sentences on the keys of a feature set that are still lost after all manifests were tried.

    `encoded` are the (feature set, key) pairs that were encoded again. `reasons` say why others could not be.
    """
    without = sorted(key for key in keys if (name, key) not in encoded)
    if without:
        reason = reasons.get((name, without[0]), "no kept manifest names a source")
        first = _asset(store, name, without[0])
        yield (
            f"{name}: damaged assets that can't be encoded again: {len(without)}, first {first} ({reason}); put the "
            "sources back and repair again, or remove them by `speechclip drop`"
        )
    others = sorted(set(keys) - set(without))
    if others:
        first = _asset(store, name, others[0])
        yield (
            f"{name}: assets whose features differ here from those of tagged versions: {len(others)}, first {first}; "
            "the newest version has the new features; delete the tags, or repair on the kind of machine that encoded "
            "them (CUDA_VISIBLE_DEVICES= takes the CPU beside a GPU)"
        )


def _asset(store: FeatureStore, name: str, key: str) -> str:
    """An asset in words: the first utterance that has it, if a kept manifest names one, and its key."""
    modality = store.read_spec(name).spec.modality
    for manifest in _readable_manifests(store):
        for utterance in manifest.utterances(modality).get(key, ())[:1]:
            return f"utterance {utterance} ({key})"
    return key


def _readable_manifests(store: FeatureStore) -> Iterator[Manifest]:
    for path in store.storage.list(MANIFESTS):
        with contextlib.suppress(Damaged):
            yield store.read_manifest(digest_in(path))
