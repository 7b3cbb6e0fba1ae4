"""A snapshot: a reader's view of one version of the store."""

import functools
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged, NotStored
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.catalog import Catalog
from speechclip.store.frames import Frames
from speechclip.store.rows import entries, is_stored
from speechclip.store.specs import read_spec
from speechclip.store.tags import Tag, Tags
from speechclip.store.vectors import Vectors
from speechclip.store.versions import Version


@dataclass(frozen=True)
class FeatureSetInfo:
    """One feature set of a snapshot: what made it, and how many assets it holds."""

    fingerprint: str
    spec: EncoderSpec
    encoder_name: str
    num_stored: int
    num_rejected: int


class Snapshot:
    """One version of the catalog. It never changes, whatever is committed later."""

    def __init__(self, storage: Storage, catalog: Catalog, version: Version) -> None:
        self.storage, self.catalog = storage, catalog
        self._version = version
        self.version = version.number
        self._rows = functools.cache(lambda fingerprint: catalog.rows(version, fingerprint))
        self._entries = functools.cache(lambda fingerprint: entries(self._rows(fingerprint)))

    def check_tags(self) -> None:
        """Raise `Damaged` if a tag names a later version although this one is the newest.

        Then the log has lost entries together with their copies.
        """
        for tag in lost_tags(self.catalog, self.version):
            raise Damaged(
                f"{self.storage.root}: tag {tag.name} names catalog version {tag.version}, and the newest is "
                f"{self.version}: entries of the log are lost",
                "verify the store to see what can be done",
            )

    def feature_sets(self) -> list[FeatureSetInfo]:
        """All feature sets of this snapshot, in the order of their fingerprints."""
        return [self._info(fingerprint) for fingerprint in self._version.feature_sets()]

    def feature_set(self, fingerprint: str) -> Frames | Vectors:
        """The features of one fingerprint. Raises `NotStored` if the snapshot has none of them."""
        known = self._version.feature_sets()
        if fingerprint not in known:
            raise NotStored(
                f"{self.storage.root} version {self.version}: no feature set {fingerprint}; it holds "
                f"{', '.join(known) or 'nothing'}"
            )
        spec = read_spec(self.storage, fingerprint).spec
        kind = Frames if spec.is_frames else Vectors
        return kind(self.storage, spec, self.stored(fingerprint))

    def stored_keys(self, fingerprint: str) -> set[str]:
        """The keys of the assets that have a feature."""
        return set(self.stored(fingerprint)["asset"].to_pylist())

    def keys(self, fingerprint: str) -> set[str]:
        """The keys of all assets of a feature set, stored or rejected."""
        return set(self._rows(fingerprint)["asset"].to_pylist())

    def rejections(self, fingerprint: str, manifest: str | None = None) -> pa.Table:
        """The rows of rejected assets that are not stored.

        These are the assets that were rejected by their bytes, and those that were rejected by their source in that
        manifest.
        """
        rows = self._entries(fingerprint)
        stored = self.stored(fingerprint)["asset"]
        of_manifest = pc.fill_null(pc.equal(rows["manifest"], manifest or ""), False)
        is_ours = pc.or_kleene(pc.is_null(rows["manifest"]), of_manifest)
        is_open = pc.and_(
            pc.equal(rows["status"], "rejected"), pc.invert(pc.is_in(rows["asset"], stored.combine_chunks()))
        )
        return rows.filter(pc.and_(is_open, is_ours))

    def committed_tasks(self, fingerprint: str) -> set[str]:
        """The tasks whose receipt this snapshot holds."""
        return set(self._rows(fingerprint)["task"].unique().to_pylist())

    def stored(self, fingerprint: str) -> pa.Table:
        """The rows of all stored assets, one row for each asset: the one that readers use."""
        rows = self._entries(fingerprint)
        return rows.filter(is_stored(rows))

    def all_stored(self, fingerprint: str) -> pa.Table:
        """The rows of all stored assets. An asset that is stored twice has two rows; readers use only one of them."""
        rows = self._rows(fingerprint)
        return rows.filter(is_stored(rows))

    def _info(self, fingerprint: str) -> FeatureSetInfo:
        found = read_spec(self.storage, fingerprint)
        num_stored, num_rejected = len(self.stored(fingerprint)), len(self.rejections(fingerprint))
        return FeatureSetInfo(fingerprint, found.spec, found.encoder_name, num_stored, num_rejected)


def lost_tags(catalog: Catalog, newest: int) -> list[Tag]:
    """The tags of versions above `newest`, which was the newest version a moment ago.

    The log entries that made these versions are lost.
    """
    later = [tag for tag in Tags(catalog.storage).readable() if tag.version > newest]
    # Another writer may have committed and tagged a version meanwhile.
    newest = catalog.newest() if later else newest
    return [tag for tag in later if tag.version > newest]
