"""The feature store: a folder or bucket prefix, read through snapshots and written by committed receipts."""

import contextlib
import functools
import hashlib
import itertools
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from speechclip.errors import Damaged, InvalidInput, NotStored, UnsupportedStore
from speechclip.manifest import Manifest
from speechclip.records import Checksummed, Receipt, Record, from_json, to_json
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store import changes
from speechclip.store.catalog import MAX_ATTEMPTS, Catalog, feature_sets
from speechclip.store.frames import Frames
from speechclip.store.layout import FORMAT, MANIFESTS, STORE_FILE, digest_in, log_path, manifest_path, spec_path
from speechclip.store.probe import probe
from speechclip.store.rows import entries, is_stored
from speechclip.store.tags import Tag, Tags
from speechclip.store.vectors import Vectors

# Reading a snapshot takes a request for each file of the catalog; a long run adds one every twenty seconds.
COMPACT_FROM = 500
_ENCODE_AGAIN = "featurize again with the same encoder"
_ADD_AGAIN = "featurize again with that manifest"
# How many of the newest commits are asked for an encoder's speed.
SPEED_FROM = 64


class StoreFile(Record, frozen=True):
    """The content of `store.json`."""

    format: int


class StoredSpec(Checksummed, frozen=True, kw_only=True):
    """The content of `spec.json`: the spec, and the words that built the encoder the first time."""

    spec: EncoderSpec
    encoder_name: str = msgspec.field(name="source")


@dataclass(frozen=True)
class FeatureSetInfo:
    """One line of a snapshot's table of contents."""

    fingerprint: str
    spec: EncoderSpec
    encoder_name: str
    num_stored: int
    num_rejected: int


class FeatureStore:
    """A store at a local folder or an `s3://` address. Nothing is created before the first write."""

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)
        self.catalog = Catalog(self.storage)
        self.tags = Tags(self.storage)

    def __repr__(self) -> str:
        return f"FeatureStore({self.storage.root!r})"

    def exists(self) -> bool:
        """Whether a store lies here; `UnsupportedStore` if its format is newer than this code."""
        try:
            data = self.storage.read(STORE_FILE)
        except FileNotFoundError:
            return False
        try:
            found = from_json(data, StoreFile).format
        except msgspec.DecodeError as error:
            raise Damaged(f"{self.storage.address(STORE_FILE)}: damaged ({error})") from None
        if found > FORMAT:
            raise UnsupportedStore(
                f"{self.storage.root}: a store of format {found}, this speechclip knows {FORMAT}", "upgrade speechclip"
            )
        return True

    def check_exists(self) -> None:
        """`NotStored` if no store lies here, `Damaged` if all but its own file does."""
        if not self.exists():
            if self.storage.size(log_path(0)) is not None:
                raise Damaged(
                    f"{self.storage.address(STORE_FILE)}: the file is gone, or a first run is about to make it"
                )
            raise NotStored(f"{self.storage.root}: no feature store here")

    def create(self) -> None:
        """Make the store, unless it is there; `UnsupportedStore` where the backend can't keep writers apart."""
        # `repair --forget` may have given up all of the log.
        if not self.exists() or (self.storage.size(log_path(0)) is None and not self.catalog.journal.has(0)):
            probe(self.storage)
            self.catalog.create()
            self.storage.create(STORE_FILE, to_json(StoreFile(format=FORMAT)))

    def newest(self) -> "Snapshot | None":
        """The newest snapshot, None where there is no store yet."""
        with contextlib.suppress(NotStored):
            return self.snapshot()
        return None

    def snapshot(self, version: int | str | None = None) -> "Snapshot":
        """The store as it stood at that catalog version, or at that tag; by default the newest.

        `NotStored` if there is no such version, or `gc` has freed it.
        """
        self.check_exists()
        number = self.version_of(version)
        if number is not None:
            self.tags.check_readable(number)
        return Snapshot(self, self.catalog.open(number))

    def version_of(self, version: int | str | None) -> int | None:
        """The number of a version given as such, as its digits, or as a tag."""
        if version is None or isinstance(version, int):
            return version
        return int(version) if version.isdecimal() else self.tags.read(version).version

    def commit(
        self, receipts: Sequence[Receipt], manifest: str, *, job: str = "", damaged: changes.Keys | None = None
    ) -> int:
        """Make the receipts part of the store, atomically and once; a catalog version that holds them.

        What they store of the keys in `damaged`, by feature set, takes the place of the old rows.
        """
        receipts = [receipt for receipt in receipts if receipt.stored or receipt.rejected]
        # The run is part of it: after a `drop` a later run may adopt the same shards by equal receipts.
        digest = hashlib.sha256(b"\n".join([job.encode(), *sorted(map(to_json, receipts))])).hexdigest()
        change = changes.replace(self.catalog, receipts, manifest, damaged or {})
        version = self.catalog.commit(digest, "repair" if damaged else "featurize", job, change)
        return self.catalog.newest() if version is None else version

    def drop(self, doomed: Mapping[str, Collection[str] | None], *, job: str = "") -> int | None:
        """Name these keys, by feature set, no more (None: a whole set); the version, None if none was there.

        Older versions still name them, until `gc` frees what is not tagged.
        """
        return self.catalog.commit(secrets.token_hex(16), "drop", job, changes.drop(self.catalog, doomed))

    def compact(self, min_files: int = COMPACT_FROM, *, attempts: int = MAX_ATTEMPTS) -> int | None:
        """Put the rows of each feature set in one file where the catalog keeps them in `min_files` or more.

        `LostRace` if other writers were first at every attempt.
        """
        change = changes.compact(self.catalog, min_files)
        return self.catalog.commit(secrets.token_hex(16), "compact", "", change, attempts)

    def lost_tags(self, newest: int) -> list[Tag]:
        """The tags of versions above `newest`, the newest a moment ago: the entries that made these are lost."""
        later = [tag for tag in self.tags.readable() if tag.version > newest]
        # Others may have committed and tagged meanwhile.
        newest = self.catalog.newest() if later else newest
        return [tag for tag in later if tag.version > newest]

    def speed(self, feature_set: str) -> float | None:
        """Assets per worker-second in the newest commit that encoded some of this feature set, if a late one did."""
        for entry in itertools.islice(self.catalog.history(self.catalog.newest()), SPEED_FROM):
            for part in entry.note.changes if entry.note else ():
                if part.feature_set == feature_set and part.encoded and part.seconds > 0:
                    return part.encoded / part.seconds
        return None

    def add_spec(self, spec: EncoderSpec, encoder_name: str) -> None:
        """Keep the spec of a feature set, once; one that is damaged is replaced, for its name proves ours."""
        path, data = (
            spec_path(spec.fingerprint),
            to_json(StoredSpec(spec=spec, encoder_name=encoder_name).with_checksum()),
        )
        if not self.storage.create(path, data):
            try:
                self.read_spec(spec.fingerprint)
            except Damaged:
                self.storage.replace(path, data)

    def read_spec(self, fingerprint: str) -> StoredSpec:
        """The spec of a feature set; `NotStored` if the store has none."""
        path = spec_path(fingerprint)
        try:
            kept = from_json(self.storage.read(path), StoredSpec)
        except FileNotFoundError:
            raise NotStored(f"{self.storage.root}: no feature set {fingerprint}") from None
        except (msgspec.DecodeError, InvalidInput) as error:
            raise Damaged(f"{path}: {error}", _ENCODE_AGAIN) from None
        if kept.spec.fingerprint != fingerprint:
            raise Damaged(f"{path}: not the spec that its name states", _ENCODE_AGAIN)
        return kept

    def add_manifest(self, manifest: Manifest) -> None:
        """Keep a copy of the manifest under its digest, so that answers can be shown without the corpus."""
        path = manifest_path(manifest.digest)
        if not self.storage.create(path, manifest.to_bytes()):
            try:
                self.read_manifest(manifest.digest)
            except Damaged:
                self.storage.replace(path, manifest.to_bytes())

    def read_manifest(self, digest: str) -> Manifest:
        """The kept copy of a manifest; `Damaged` if it is not what its name says."""
        path = manifest_path(digest)
        try:
            manifest = Manifest.read(self.storage.address(path))
        except InvalidInput as error:
            raise Damaged(f"{path}: {error}", _ADD_AGAIN) from None
        if manifest.digest != digest:
            raise Damaged(f"{path}: not the rows that its name states", _ADD_AGAIN)
        return manifest

    def manifest_digests(self) -> list[str]:
        """The digests of all kept manifests, sorted."""
        return [digest_in(path) for path in self.storage.list(MANIFESTS)]

    def manifests(self) -> Iterator[Manifest]:
        """Every kept manifest."""
        return map(self.read_manifest, self.manifest_digests())


class Snapshot:
    """One version of the catalog: it never changes, whatever is committed later."""

    def __init__(self, store: FeatureStore, table: DeltaTable) -> None:
        self.store = store
        self._table = table
        self.version = table.version()
        self._rows = functools.cache(lambda fingerprint: store.catalog.rows(table, fingerprint))
        self._entries = functools.cache(lambda fingerprint: entries(self._rows(fingerprint)))

    def check_tags(self) -> None:
        """`Damaged` if a tag names a version above this, the newest: then the log has lost entries and their copies."""
        for tag in self.store.lost_tags(self.version):
            raise Damaged(
                f"{self.store.storage.root}: tag {tag.name} names catalog version {tag.version}, and the newest is "
                f"{self.version}: entries of the log are lost",
                "verify the store to see what can be done",
            )

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
        return kind(self.store.storage, spec, self.stored(fingerprint), verify=verify)

    def stored_keys(self, fingerprint: str) -> set[str]:
        """The keys of the assets that have a feature."""
        return set(self.stored(fingerprint)["asset"].to_pylist())

    def keys(self, fingerprint: str) -> set[str]:
        """The keys of all assets that the catalog knows there, stored or rejected."""
        return set(self._rows(fingerprint)["asset"].to_pylist())

    def rejections(self, fingerprint: str, manifest: str | None = None) -> pa.Table:
        """Rejected assets that are not stored: by their bytes, and by the sources of that one manifest."""
        rows = self._entries(fingerprint)
        stored = self.stored(fingerprint)["asset"]
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

    def stored(self, fingerprint: str) -> pa.Table:
        """The catalog's rows of all stored assets, each once."""
        rows = self._entries(fingerprint)
        return rows.filter(is_stored(rows))

    def all_stored(self, fingerprint: str) -> pa.Table:
        """The catalog's rows of all stored assets, of one that is stored twice also the row that no reader picks."""
        rows = self._rows(fingerprint)
        return rows.filter(is_stored(rows))

    def _info(self, fingerprint: str) -> FeatureSetInfo:
        kept = self.store.read_spec(fingerprint)
        num_stored, num_rejected = len(self.stored(fingerprint)), len(self.rejections(fingerprint))
        return FeatureSetInfo(fingerprint, kept.spec, kept.encoder_name, num_stored, num_rejected)
