"""Repair a store: first the files that storage alone can repair, then the lost features, encoded from their sources.

The catalog names a damaged feature until it is whole again. So if a repair is killed, or a source is gone, everything
that could be read before can still be read.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from speechclip.featurization.driver import encode_inline, new_job
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import Record
from speechclip.spec import EncoderSpec
from speechclip.store import FeatureStore
from speechclip.store.layout import log_path
from speechclip.upkeep.advice import advice_on_lost_data_files, data_file_of, problem_with_advice
from speechclip.upkeep.encode_lost import Encode, encode_lost
from speechclip.upkeep.findings import BLOCKING, Finding, keys_of
from speechclip.upkeep.repair_files import forget_lost_data_files, repair_files
from speechclip.upkeep.repair_log import forget_entry, is_foreign
from speechclip.upkeep.replace_lost import keys_in_file
from speechclip.upkeep.verify import verify, verify_format

_DATA_FILES = ("catalog", "copy")


class Repaired(Record, frozen=True):
    """What a repair did.

    `repaired` are the findings whose files are whole now. `forgotten` are the paths of log entries and data files that
    were lost with their copies, and that nothing needs any more. `left` holds the keys, by feature set, that are still
    damaged. `problems` says why, and what to do.
    """

    repaired: tuple[Finding, ...] = msgspec.field(name="mended")
    forgotten: tuple[str, ...] = msgspec.field(name="given_up")
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
    """Verify the store, repair its files, and encode only the features that are lost.

    `manifests` and `encoders` replace the store's own copies where these are damaged. With `forget`, log entries and
    data files that are lost together with their copies are forgotten: what only they named is missing afterwards.
    """
    verify_format(store)
    for manifest in manifests:
        store.add_manifest(manifest)
    for request, spec in encoders:
        store.add_spec(spec, request.encoder_name)
    repaired, forgotten, remaining = _repair_all_files(store, forget, on_progress)
    is_readable = not any(finding.kind in BLOCKING for finding in remaining)
    if is_readable:
        # A writer that was killed after its commit leaves the newest entry without a copy.
        store.catalog.journal.copy_up_to(store.catalog.newest())
    if forget and is_readable and any(finding.kind == "catalog" for finding in remaining):
        forgotten += forget_lost_data_files(store)
    data_files = {data_file_of(finding) for finding in remaining if finding.kind in _DATA_FILES}
    needed = advice_on_lost_data_files(store, data_files) if data_files else {}
    remaining = [f for f in remaining if f.kind not in _DATA_FILES or data_file_of(f) in needed]
    problems = [problem_with_advice(store, finding, needed) for finding in remaining if not finding.keys]
    lost = [finding for finding in remaining if finding.keys]
    dropped, lost = _drop_embeddings(store, lost)
    encoded, lost = encode_lost(store, lost, encode, sizes, problems)
    return Repaired(
        repaired=tuple(repaired),
        forgotten=tuple(forgotten),
        encoded=encoded,
        dropped_embeddings=dropped,
        left={name: tuple(sorted(keys)) for name, keys in keys_of(lost).items()},
        problems=tuple(problems),
    )


def _repair_all_files(
    store: FeatureStore, forget: bool, on_progress: Callable[[int, int], None]
) -> tuple[list[Finding], list[str], list[Finding]]:
    """Verify and repair files until no repaired file can reveal further damage.

    Example: while a log entry is damaged, no shard can be verified. So after its repair, `verify` runs again.

    Returns the findings that were repaired, the paths that were forgotten, and the findings that remain.
    """
    repaired, forgotten = list[Finding](), list[str]()
    while True:
        report = verify(store, on_progress=on_progress)
        remaining = list(repair_files(store, report.findings))
        undone = [finding for finding in remaining if is_foreign(finding) and forget_entry(store, finding)]
        now = [finding for finding in report.findings if finding not in remaining or finding in undone]
        lost = [finding for finding in remaining if forget and finding not in undone]
        gone = list(dict.fromkeys(path for finding in lost for path in forget_entry(store, finding)))
        repaired += now
        forgotten += [path for path in gone if path not in forgotten]
        if log_path(0) in gone:
            store.create()
        if not gone and not any(finding.kind in (*BLOCKING, "catalog", "collection") for finding in now):
            return repaired, forgotten, remaining


def _drop_embeddings(store: FeatureStore, lost: Sequence[Finding]) -> tuple[int, list[Finding]]:
    """Drop damaged embeddings: a head made them from other features, so `speechclip embed` must make them again.

    Returns how many were dropped, and the findings that remain. An embedding that a tagged version names remains,
    because nothing can be dropped from a tagged version.
    """
    of_heads = [finding for finding in lost if store.read_spec(finding.feature_set).spec.is_of_head]
    if not of_heads:
        return 0, list(lost)
    # The newest version may already name whole embeddings of the same keys, in other files. Those stay.
    newest, keys = store.snapshot(), defaultdict[str, set[str]](set)
    for finding in of_heads:
        keys[finding.feature_set] |= keys_in_file(newest, finding)
    store.drop(keys, job=new_job())
    tagged = [store.snapshot(tag.version) for tag in store.tags.readable(newest.version)]
    remaining = [
        finding
        for finding in lost
        if finding not in of_heads or any(keys_in_file(snapshot, finding) for snapshot in tagged)
    ]
    return sum(map(len, keys.values())), remaining
