"""Repair: what storage can put right by itself, then the damaged features encoded anew from their sources.

A damaged row stays in the catalog until its replacement is committed, in the same version. So a repair that is killed,
or whose source is gone, loses nothing that could still be read.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from speechclip.errors import SpeechClipError
from speechclip.featurizer import Committer, Work, new_run, run, run_inline
from speechclip.manifest import Manifest
from speechclip.plan import TaskSizes, cover, open_plan
from speechclip.records import Receipt, Record
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore
from speechclip.store.findings import HIDING, Finding
from speechclip.store.mend import forget_unreadable, mend
from speechclip.store.verify import verify
from speechclip.tasks import EncoderRequest


class Repaired(Record, frozen=True):
    """What a repair did. `left` holds the keys, by feature set, that are still damaged, and `problems` says why."""

    mended: tuple[Finding, ...]
    encoded: int
    dropped_embeddings: int
    left: dict[str, tuple[str, ...]]
    problems: tuple[str, ...]


def repair(
    store: FeatureStore,
    encode: Callable[[Work], Iterator[Receipt]] = run_inline,
    *,
    manifests: Sequence[Manifest] = (),
    encoders: Sequence[tuple[EncoderRequest, EncoderSpec]] = (),
    sizes: TaskSizes = TaskSizes(),  # noqa: B008 (frozen)
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Repaired:
    """Verify, mend, and encode only what is damaged or gone.

    `manifests` and `encoders` take the place of the store's own copies where these are damaged.
    """
    for manifest in manifests:
        store.add_manifest(manifest)
    for request, spec in encoders:
        store.add_spec(spec, request.source)
    mended, remaining = _mend_all(store, on_progress)
    damaged: dict[str, set[str]] = {}
    for finding in remaining:
        if finding.keys:
            damaged.setdefault(finding.feature_set, set()).update(finding.keys)
    problems = [f"{finding.path}: {finding.problem}" for finding in remaining if not finding.keys]
    dropped = _drop_embeddings(store, damaged)
    encoded = _encode_anew(store, damaged, encode, sizes, problems)
    return Repaired(
        mended=tuple(mended),
        encoded=encoded,
        dropped_embeddings=dropped,
        left={name: tuple(sorted(keys)) for name, keys in damaged.items() if keys},
        problems=tuple(problems),
    )


def _mend_all(
    store: FeatureStore, on_progress: Callable[[int, int], None]
) -> tuple[list[Finding], tuple[Finding, ...]]:
    """Verify and mend until what is left hides nothing more, or can't be mended."""
    mended: list[Finding] = []
    while True:
        report = verify(store, on_progress=on_progress)
        remaining = mend(store, report.findings)
        now = [finding for finding in report.findings if finding not in remaining]
        mended += now
        # Behind these lay what could not be verified yet.
        if not any(finding.kind in (*HIDING, "catalog") for finding in now):
            break
    lost = [finding for finding in remaining if finding.kind == "catalog"]
    if lost and not any(finding.kind in HIDING for finding in remaining):
        forget_unreadable(store)
    return mended, remaining


def _drop_embeddings(store: FeatureStore, damaged: dict[str, set[str]]) -> int:
    """Embeddings come from a head, not from a source: they are dropped, and `embed` makes them again."""
    heads = {name: damaged.pop(name) for name in list(damaged) if store.read_spec(name).spec.is_of_head}
    if heads:
        store.drop(heads, run=new_run())
    return sum(map(len, heads.values()))


def _encode_anew(
    store: FeatureStore,
    damaged: Mapping[str, set[str]],
    encode: Callable[[Work], Iterator[Receipt]],
    sizes: TaskSizes,
    problems: list[str],
) -> int:
    """Encode the damaged keys from the sources that any kept manifest names; what succeeds leaves `damaged`."""
    requests = {name: _request(store, name, problems) for name in damaged}
    usable = {name: found for name, found in requests.items() if found is not None}
    encoded = 0
    for manifest in store.manifests():
        snapshot = store.snapshot()
        coverage = []
        for name, (_, spec) in usable.items():
            wanted = tuple(asset for asset in manifest.assets(spec.modality) if asset.key in damaged[name])
            coverage.append(dataclasses.replace(cover(manifest, spec, snapshot), missing=wanted))
        plan = open_plan(store, manifest, coverage, snapshot, sizes)
        work = Work(
            store,
            manifest,
            requests={name: request for name, (request, _) in usable.items()},
            specs={name: spec for name, (_, spec) in usable.items()},
            before=tuple(coverage),
            plan=plan,
            damaged={name: frozenset(keys) for name, keys in damaged.items()},
        )
        committer = Committer(work)
        run(encode(work), committer)
        for name, key in committer.encoded:
            damaged[name].discard(key)
        encoded += len(committer.encoded)
    problems += [
        f"{name}: {len(keys)} damaged assets, first {min(keys)}, have no source any more that a kept manifest names; "
        f"put the sources back and repair again, or give them up by `speechclip drop`"
        for name, keys in damaged.items()
        if keys and name in usable
    ]
    return encoded


def _request(store: FeatureStore, name: str, problems: list[str]) -> tuple[EncoderRequest, EncoderSpec] | None:
    """How to build the encoder of a feature set, if this machine makes the same one of it."""
    kept = store.read_spec(name)
    request = EncoderRequest.again(kept.spec, kept.source)
    try:
        found = request.build().spec
    except SpeechClipError as error:
        problems.append(f"{name}: {error}")
        return None
    if found != kept.spec:
        problems.append(f"{name}: here {kept.source} gives {found.fingerprint}; repair where the same weights are")
        return None
    return request, kept.spec
