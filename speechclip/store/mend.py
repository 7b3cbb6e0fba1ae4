"""mend: put right what storage alone can: from a copy, from the shard itself, or from a name. No encoder is needed."""

import secrets
from collections.abc import Callable, Sequence

from speechclip.errors import Damaged, StoreError
from speechclip.records import to_json
from speechclip.store import changes
from speechclip.store.catalog import CHECKPOINT_EVERY
from speechclip.store.feature_store import FeatureStore, StoreFile
from speechclip.store.findings import Finding, Kind
from speechclip.store.frames import describe_shard
from speechclip.store.layout import CATALOG, FORMAT, STORE_FILE, journal_path, part_copy_path, part_path
from speechclip.store.rows import decode_part
from speechclip.store.segments import segment_metadata, shape_of


def mend(store: FeatureStore, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Mend what can be mended so; the findings that remain, for the encoders or for nobody.

    The log comes first: all else is read through it.
    """
    remaining = []
    for finding in sorted(findings, key=lambda finding: list(_MENDERS).index(finding.kind)):
        try:
            is_mended = _MENDERS[finding.kind](store, finding)
        except (StoreError, FileNotFoundError):
            is_mended = False
        if not is_mended:
            remaining.append(finding)
    return tuple(remaining)


def forget_unreadable(store: FeatureStore) -> int | None:
    """Commit that the catalog's unreadable files are named no more; the version, None if all can be read.

    The last resort, where a file and its copy are both lost: what only they named is then missing, and encoded anew by
    the next `featurize`.
    """
    return store.catalog.commit(secrets.token_hex(16), "repair", "", changes.forget_unreadable(store.catalog))


def _mend_format(store: FeatureStore, finding: Finding) -> bool:
    store.catalog.open()
    store.storage.replace(STORE_FILE, to_json(StoreFile(format=FORMAT)))
    return True


def _mend_log(store: FeatureStore, finding: Finding) -> bool:
    """An entry from its copy. One above all copies was never acknowledged to the run that made it: it goes."""
    journal, version = store.catalog.journal, _version(finding)
    copy = journal.read(version)
    if copy is not None:
        store.storage.replace(finding.path, copy.text.encode())
    elif any(journal.has(later) for later in (version, version + 1)):
        return False
    else:
        store.storage.delete([finding.path])
    return True


def _mend_journal(store: FeatureStore, finding: Finding) -> bool:
    store.storage.replace(finding.path, store.catalog.journal.copy_of(_version(finding)))
    return True


def _mend_checkpoint(store: FeatureStore, finding: Finding) -> bool:
    """All checkpoints anew, from the log's entries, none of which is ever deleted."""
    storage, journal = store.storage, store.catalog.journal
    storage.delete([path for path in storage.list(f"{CATALOG}/_delta_log") if "checkpoint" in path])
    for version in range(0, int(store.catalog.open().version()) + 1, CHECKPOINT_EVERY):
        copy = journal.read(version)
        if copy is not None and copy.checkpoint:
            store.catalog.checkpoint(version)
            storage.replace(journal_path(version), journal.copy_of(version))
    return True


def _mend_part(store: FeatureStore, finding: Finding) -> bool:
    """A file of the catalog's rows from its copy, or the copy from the file: the name says which bytes are right."""
    path = finding.path.partition("/")[2]
    for source in (part_path(path), part_copy_path(path)):
        try:
            data = store.storage.read(source)
            decode_part(source, data)
        except (Damaged, FileNotFoundError):
            continue
        store.storage.replace(finding.path, data)
        return True
    return False


def _mend_checksums(store: FeatureStore, finding: Finding) -> bool:
    tar = store.storage.read(f"{finding.path.removesuffix('.xxh3')}.tar")
    sums, _ = describe_shard(tar, store.read_spec(finding.feature_set).spec)
    store.storage.replace(finding.path, sums)
    return True


def _mend_metadata(store: FeatureStore, finding: Finding) -> bool:
    spec = store.read_spec(finding.feature_set).spec
    for name, data in segment_metadata(spec, shape_of(finding.path)).items():
        store.storage.replace(f"{finding.path}/{name}", data)
    return True


def _mend_manifest(store: FeatureStore, finding: Finding) -> bool:
    """Give the copy up: the next `featurize` with that manifest keeps it again."""
    store.storage.delete([finding.path])
    return True


def _needs_an_encoder(_store: FeatureStore, _finding: Finding) -> bool:
    return False


def _version(finding: Finding) -> int:
    return int(finding.path.rpartition("/")[2][:20])


# In the order in which they are mended.
_MENDERS: dict[Kind, Callable[[FeatureStore, Finding], bool]] = {
    "log": _mend_log,
    "journal": _mend_journal,
    "checkpoint": _mend_checkpoint,
    "store": _mend_format,
    "catalog": _mend_part,
    "copy": _mend_part,
    "checksums": _mend_checksums,
    "metadata": _mend_metadata,
    "manifest": _mend_manifest,
    "spec": _needs_an_encoder,
    "shard": _needs_an_encoder,
    "chunk": _needs_an_encoder,
}
