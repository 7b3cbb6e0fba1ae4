"""The feature store: a folder or bucket prefix, read through snapshots and written by committed receipts."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from speechclip.errors import NotStored, StoreError, UnsupportedStore
from speechclip.manifest import Manifest
from speechclip.records import Receipt, Record
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.catalog import Catalog, entries, feature_sets, read_rows
from speechclip.store.frames import Frames
from speechclip.store.layout import FORMAT, STORE_FILE, manifest_path, spec_path
from speechclip.store.vectors import Vectors


class StoredSpec(Record, frozen=True):
    """The content of `spec.json`: the spec, and the words that built the encoder the first time."""

    spec: EncoderSpec
    source: str


@dataclass(frozen=True)
class FeatureSetInfo:
    """One line of a snapshot's table of contents."""

    fingerprint: str
    spec: EncoderSpec
    source: str
    num_stored: int
    num_rejected: int


class FeatureStore:
    """A store at a local folder or an `s3://` address. Nothing is created before the first write."""

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)
        self.catalog = Catalog(self.storage)

    def __repr__(self) -> str:
        return f"FeatureStore({self.storage.root!r})"

    def exists(self) -> bool:
        """Whether a store lies here; `UnsupportedStore` if its format is newer than this code."""
        if self.storage.size(STORE_FILE) is None:
            return False
        found = msgspec.json.decode(self.storage.read(STORE_FILE))["format"]
        if found > FORMAT:
            raise UnsupportedStore(
                f"{self.storage.root}: a store of format {found}, this speechclip knows {FORMAT}; upgrade speechclip"
            )
        return True

    def create(self) -> None:
        """Make the store, unless it is there; `UnsupportedStore` where the backend can't keep writers apart."""
        if not self.exists():
            self.storage.probe()
            self.catalog.create()
            self.storage.create(STORE_FILE, msgspec.json.encode({"format": FORMAT}))

    def snapshot(self, version: int | None = None) -> "Snapshot":
        """The store as it stood at that catalog version, by default the newest."""
        if not self.exists():
            raise NotStored(f"{self.storage.root}: no feature store here; make one by `speechclip featurize`")
        return Snapshot(self, self.catalog.open(version))

    def commit(self, receipts: Sequence[Receipt], manifest: str) -> int:
        """Make the receipts part of the store, atomically and once; the catalog version that holds them."""
        return self.catalog.commit(receipts, manifest)

    def add_spec(self, spec: EncoderSpec, source: str) -> None:
        """Keep the spec of a feature set, once."""
        path = spec_path(spec.fingerprint)
        if not self.storage.create(path, msgspec.json.encode(StoredSpec(spec=spec, source=source), order="sorted")):
            there = self.read_spec(spec.fingerprint).spec
            if there != spec:
                raise StoreError(f"{path}: another spec of the same fingerprint lies there: {there}")

    def read_spec(self, fingerprint: str) -> StoredSpec:
        """The spec of a feature set; `NotStored` if the store has none."""
        try:
            return msgspec.json.decode(self.storage.read(spec_path(fingerprint)), type=StoredSpec)
        except FileNotFoundError:
            raise NotStored(
                f"{self.storage.root}: no feature set {fingerprint}; `speechclip plan` lists what is stored"
            ) from None

    def add_manifest(self, manifest: Manifest) -> None:
        """Keep a copy of the manifest under its digest, so that answers can be shown without the corpus."""
        self.storage.create(manifest_path(manifest.digest), manifest.to_bytes())

    def read_manifest(self, digest: str) -> Manifest:
        """The kept copy of a manifest."""
        return Manifest.read(self.storage.address(manifest_path(digest)))

    def manifests(self) -> Iterator[Manifest]:
        """Every kept manifest."""
        for path in self.storage.list("manifests"):
            yield Manifest.read(self.storage.address(path))


class Snapshot:
    """One version of the catalog: it never changes, whatever is committed later."""

    def __init__(self, store: FeatureStore, table: DeltaTable) -> None:
        self.store = store
        self._table = table
        self.version = table.version()
        self._rows = functools.cache(lambda fingerprint: read_rows(store.storage, table, fingerprint))
        self._entries = functools.cache(lambda fingerprint: entries(self._rows(fingerprint)))

    def feature_sets(self) -> list[FeatureSetInfo]:
        """Everything that this snapshot holds."""
        return [self._info(fingerprint) for fingerprint in feature_sets(self._table)]

    def feature_set(self, fingerprint: str, *, verify: bool = True) -> "Frames | Vectors":
        """The features of one fingerprint; `NotStored` if the snapshot has none of it."""
        if fingerprint not in feature_sets(self._table):
            known = ", ".join(feature_sets(self._table)) or "nothing"
            raise NotStored(
                f"{self.store.storage.root} version {self.version}: no feature set {fingerprint}; it holds {known}"
            )
        spec = self.store.read_spec(fingerprint).spec
        kind = Frames if spec.is_frames else Vectors
        return kind(self.store.storage, spec, self._stored(fingerprint), verify=verify)

    def stored_keys(self, fingerprint: str) -> set[str]:
        """The keys of the assets that have a feature."""
        return set(self._stored(fingerprint)["asset"].to_pylist())

    def rejections(self, fingerprint: str, manifest: str | None = None) -> pa.Table:
        """Rejected assets that are not stored: by their bytes, and by the sources of that one manifest."""
        rows = self._entries(fingerprint)
        stored = self._stored(fingerprint)["asset"]
        is_ours = pc.or_kleene(
            pc.is_null(rows["manifest"]), pc.fill_null(pc.equal(rows["manifest"], manifest or ""), False)
        )
        is_open = pc.and_(
            pc.equal(rows["status"], "rejected"), pc.invert(pc.is_in(rows["asset"], stored.combine_chunks()))
        )
        return rows.filter(pc.and_(is_open, is_ours))

    def committed_tasks(self, fingerprint: str) -> set[str]:
        """The tasks whose receipt this snapshot holds."""
        return set(self._rows(fingerprint)["task"].unique().to_pylist())

    def _stored(self, fingerprint: str) -> pa.Table:
        rows = self._entries(fingerprint)
        return rows.filter(pc.equal(rows["status"], "stored"))

    def _info(self, fingerprint: str) -> FeatureSetInfo:
        kept = self.store.read_spec(fingerprint)
        num_stored, num_rejected = len(self._stored(fingerprint)), len(self.rejections(fingerprint))
        return FeatureSetInfo(fingerprint, kept.spec, kept.source, num_stored, num_rejected)
