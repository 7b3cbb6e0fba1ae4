"""Repair: what storage can put right by itself, then the lost features encoded anew from their sources.

The catalog names a damaged feature until it is whole again. So a repair that is killed, or whose source is gone, loses
nothing that could still be read.
"""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from speechclip.errors import Damaged, SpeechClipError
from speechclip.featurization.driver import Work, encode_inline, new_job
from speechclip.featurization.plan import TaskSizes, cover, open_plan
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import Receipt, Record
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore
from speechclip.store.layout import MANIFESTS, digest_in, log_path
from speechclip.upkeep.findings import HIDING, Finding, keys_of
from speechclip.upkeep.live import advice_on
from speechclip.upkeep.mend import can_be_given_up, forget_unreadable, give_up_entry, is_foreign, mend
from speechclip.upkeep.replace_lost import named_keys, replace_lost
from speechclip.upkeep.restore import rows_at
from speechclip.upkeep.verify import verify, verify_format

Encode = Callable[[Work], Iterator[Receipt]]
# How to build the encoder of a feature set.
Encoders = Mapping[str, tuple[EncoderRequest, EncoderSpec]]
_PARTS = ("catalog", "copy")


class Repaired(Record, frozen=True):
    """What a repair did. `left` holds the keys, by feature set, that are still damaged, and `problems` says why.

    `given_up` are the entries and the files of rows that were lost with their copies, and that nothing waits for now.
    """

    mended: tuple[Finding, ...]
    given_up: tuple[str, ...]
    encoded: int
    dropped_embeddings: int
    left: dict[str, tuple[str, ...]]
    problems: tuple[str, ...]


def repair(
    store: FeatureStore,
    encode: Encode = encode_inline,
    *,
    manifests: Sequence[Manifest] = (),
    encoders: Sequence[tuple[EncoderRequest, EncoderSpec]] = (),
    sizes: TaskSizes = TaskSizes(),  # noqa: B008 (frozen)
    forget: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Repaired:
    """Verify, mend, and encode only what is damaged or gone.

    `manifests` and `encoders` take the place of the store's own copies where these are damaged. With `forget`, what the
    catalog has lost with its copy is given up, newest entries of the log and files of rows: what only they named is
    missing then.
    """
    verify_format(store)
    for manifest in manifests:
        store.add_manifest(manifest)
    for request, spec in encoders:
        store.add_spec(spec, request.encoder_name)
    mended, given_up, remaining = _mend_all(store, forget, on_progress)
    is_readable = not any(finding.kind in HIDING for finding in remaining)
    if is_readable:
        # The newest entry may have no copy, as a killed writer leaves it.
        store.catalog.journal.copy_up_to(store.catalog.newest())
    if forget and is_readable and any(finding.kind == "catalog" for finding in remaining):
        given_up += forget_unreadable(store)
    parts = {_part(finding) for finding in remaining if finding.kind in _PARTS}
    needed = advice_on(store, parts) if parts else {}
    remaining = [finding for finding in remaining if finding.kind not in _PARTS or _part(finding) in needed]
    problems = [_advice(store, finding, needed) for finding in remaining if not finding.keys]
    lost = [finding for finding in remaining if finding.keys]
    dropped, lost = _drop_embeddings(store, lost)
    encoded, lost = _encode_anew(store, lost, encode, sizes, problems)
    return Repaired(
        mended=tuple(mended),
        given_up=tuple(given_up),
        encoded=encoded,
        dropped_embeddings=dropped,
        left={name: tuple(sorted(keys)) for name, keys in keys_of(lost).items()},
        problems=tuple(problems),
    )


def _mend_all(
    store: FeatureStore, forget: bool, on_progress: Callable[[int, int], None]
) -> tuple[list[Finding], list[str], list[Finding]]:
    """Verify and mend until what is left hides nothing more; what was mended, the entries given up, what is left."""
    mended, given_up = list[Finding](), list[str]()
    while True:
        report = verify(store, on_progress=on_progress)
        remaining = list(mend(store, report.findings))
        undone = [finding for finding in remaining if is_foreign(finding) and give_up_entry(store, finding)]
        now = [finding for finding in report.findings if finding not in remaining or finding in undone]
        lost = [finding for finding in remaining if forget and finding not in undone]
        gone = list(dict.fromkeys(path for finding in lost for path in give_up_entry(store, finding)))
        mended += now
        given_up += [path for path in gone if path not in given_up]
        if log_path(0) in gone:
            store.create()
        # Behind these lay what could not be verified yet.
        if not gone and not any(finding.kind in (*HIDING, "catalog", "collection") for finding in now):
            return mended, given_up, remaining


def _drop_embeddings(store: FeatureStore, lost: Sequence[Finding]) -> tuple[int, list[Finding]]:
    """Embeddings come from a head, not from a source: they are dropped, and `embed` makes them again.

    How many, and the findings that remain: a tagged version can't be dropped from.
    """
    of_heads = [finding for finding in lost if store.read_spec(finding.feature_set).spec.is_of_head]
    if not of_heads:
        return 0, list(lost)
    # Where only a tag still names the damaged ones, the newest version may hold others in their place.
    head, keys = store.snapshot(), defaultdict[str, set[str]](set)
    for finding in of_heads:
        keys[finding.feature_set] |= named_keys(head, finding)
    store.drop(keys, job=new_job())
    tagged = [store.snapshot(tag.version) for tag in store.tags.readable(head.version)]
    remaining = [
        finding
        for finding in lost
        if finding not in of_heads or any(named_keys(snapshot, finding) for snapshot in tagged)
    ]
    return sum(map(len, keys.values())), remaining


def _encode_anew(
    store: FeatureStore, lost: Sequence[Finding], encode: Encode, sizes: TaskSizes, problems: list[str]
) -> tuple[int, list[Finding]]:
    """Encode the lost keys from the sources that any kept manifest names; how many, and what is lost all the same."""
    encoders = {name: found for name in keys_of(lost) if (found := _encoder(store, name, problems)) is not None}
    if not encoders:
        return 0, list(lost)
    rows = rows_at(store.catalog, lost)
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
            problems += _why_left(store, name, keys, encoded, reasons)
    return len(encoded), list(lost)


def _work(
    store: FeatureStore, manifest: Manifest, encoders: Encoders, lost: Sequence[Finding], sizes: TaskSizes
) -> Work:
    """The lost keys that this manifest names, as a plan."""
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


def _part(finding: Finding) -> str:
    """The file of rows that a finding is of, or of its copy."""
    return finding.path.partition("/")[2]


def _advice(store: FeatureStore, finding: Finding, needed: Mapping[str, str]) -> str:
    """What was wrong with a file that could not be mended, and what to do."""
    problem, _, own_advice = finding.problem.removeprefix(f"{finding.path}: ").partition("; ")
    give_up = "or give up what it committed by `speechclip repair --forget` and run that again"
    build_on = "later commits build on it, so it can't be given up"
    also = f", {give_up}" if can_be_given_up(store, finding) else f"; {build_on}"
    advice = {
        "log": f"its copy in the journal is lost too; bring one of them back from a backup{also}",
        "journal": "its entry is lost too; bring one of them back from a backup",
        "catalog": needed.get(_part(finding), ""),
        "copy": needed.get(_part(finding), ""),
        "tag": own_advice,
        "spec": "repair again with the words that made it: --speech, --image or --text",
        "manifest": "repair again with --manifest FILE, or delete it if nobody needs it",
    }.get(finding.kind, "bring it back from a backup")
    return f"{finding.path}: {problem}; {advice}"


def _why_left(
    store: FeatureStore,
    name: str,
    keys: set[str],
    encoded: set[tuple[str, str]],
    reasons: Mapping[tuple[str, str], str],
) -> Iterator[str]:
    without = sorted(key for key in keys if (name, key) not in encoded)
    if without:
        reason = reasons.get((name, without[0]), "no kept manifest names a source")
        yield (
            f"{name}: damaged assets that can't be encoded anew: {len(without)}, first {_who(store, name, without[0])} "
            f"({reason}); put the sources back and repair again, or give them up by `speechclip drop`"
        )
    others = sorted(keys - set(without))
    if others:
        yield (
            f"{name}: assets that come out otherwise here than tagged versions say: {len(others)}, first "
            f"{_who(store, name, others[0])}; the newest version names them anew; delete the tags, or repair on the "
            "kind of machine that encoded them (CUDA_VISIBLE_DEVICES= takes the CPU beside a GPU)"
        )


def _who(store: FeatureStore, name: str, key: str) -> str:
    """An asset by the first utterance that has it, if a kept manifest names one, and by its key."""
    modality = store.read_spec(name).spec.modality
    for manifest in _readable_manifests(store):
        for utterance in manifest.utterances(modality).get(key, ())[:1]:
            return f"utterance {utterance} ({key})"
    return key


def _readable_manifests(store: FeatureStore) -> Iterator[Manifest]:
    for path in store.storage.list(MANIFESTS):
        with contextlib.suppress(Damaged):
            yield store.read_manifest(digest_in(path))


def _encoder(store: FeatureStore, name: str, problems: list[str]) -> tuple[EncoderRequest, EncoderSpec] | None:
    """How to build the encoder of a feature set, if this machine makes the same one of it."""
    kept = store.read_spec(name)
    if kept.spec.is_of_head:
        problems.append(f"{name}: a tagged version names damaged embeddings; delete the tag, `speechclip embed` again")
        return None
    request = EncoderRequest.again(kept.spec, kept.encoder_name)
    try:
        found = request.build().spec
    except SpeechClipError as error:
        problems.append(f"{name}: {error}")
        return None
    if found != kept.spec:
        problems.append(
            f"{name}: here {kept.encoder_name} gives {found.fingerprint}; repair where the same weights are"
        )
        return None
    return request, kept.spec
