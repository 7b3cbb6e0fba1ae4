"""The feature store: a folder or bucket prefix that is read through snapshots and written by commits."""

import contextlib
import hashlib
import itertools
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from speechclip.errors import Damaged, InvalidInput, NotStored, UnsupportedStore
from speechclip.manifest import Manifest
from speechclip.records import Receipt, Record, from_json, to_json
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store import changes, specs
from speechclip.store.catalog import MAX_ATTEMPTS, Catalog
from speechclip.store.layout import FORMAT, MANIFESTS, STORE_FILE, digest_in, log_path, manifest_path
from speechclip.store.probe import probe
from speechclip.store.snapshot import Snapshot
from speechclip.store.specs import StoredSpec
from speechclip.store.tags import Tags

# A snapshot reads each data file of the catalog by a request of its own, and a long run adds one every twenty seconds.
COMPACT_FROM = 500
# How many of the newest commits `speed` looks at.
SPEED_FROM = 64
_ADD_AGAIN = "featurize again with that manifest"


class StoreFile(Record, frozen=True):
    """The content of `store.json`."""

    format: int


class FeatureStore:
    """A store at a local folder or an `s3://` address.

    Nothing is created before the first write.

        store = FeatureStore("s3://bucket/store")
        frames = store.snapshot().feature_set("hubert-base-ls960-3f2a91c04b7d")
        hidden = frames[key]  # (layers, frames, width)
    """

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)
        self.catalog = Catalog(self.storage)
        self.tags = Tags(self.storage)

    def __repr__(self) -> str:
        return f"FeatureStore({self.storage.root!r})"

    def exists(self) -> bool:
        """Whether there is a store. Raises `UnsupportedStore` if its format is newer than this code."""
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
                f"{self.storage.root}: a store of format {found}, this speechclip knows {FORMAT}",
                "upgrade speechclip",
            )
        return True

    def check_exists(self) -> None:
        """Raise `NotStored` if there is no store, and `Damaged` if there is one without its `store.json`."""
        if not self.exists():
            if self.storage.size(log_path(0)) is not None:
                raise Damaged(
                    f"{self.storage.address(STORE_FILE)}: the file is gone, or a first run is about to make it"
                )
            raise NotStored(f"{self.storage.root}: no feature store here")

    def create(self) -> None:
        """Make the store, unless it is there. Raises `UnsupportedStore` if the backend can't keep writers apart."""
        # `repair --forget` may have deleted the whole log.
        if not self.exists() or (self.storage.size(log_path(0)) is None and not self.catalog.journal.has(0)):
            probe(self.storage)
            self.catalog.create()
            self.storage.create(STORE_FILE, to_json(StoreFile(format=FORMAT)))

    def newest(self) -> Snapshot | None:
        """The newest snapshot, or None if there is no store yet."""
        with contextlib.suppress(NotStored):
            return self.snapshot()
        return None

    def snapshot(self, version: int | str | None = None) -> Snapshot:
        """The store at a version, given by number or tag. By default the newest.

        Raises `NotStored` if there is no such version, or if `gc` has deleted it.
        """
        self.check_exists()
        number = self.version_of(version)
        if number is not None:
            self.tags.check_readable(number)
        return Snapshot(self.storage, self.catalog, self.catalog.open(number))

    def version_of(self, version: int | str | None) -> int | None:
        """The number of a version that is given as a number, as its digits or as a tag."""
        if version is None or isinstance(version, int):
            return version
        return int(version) if version.isdecimal() else self.tags.read(version).version

    def commit(
        self, receipts: Sequence[Receipt], manifest: str, *, job: str = "", damaged: changes.Keys | None = None
    ) -> int:
        """Make the receipts part of the store, atomically and once. Returns a catalog version that holds them.

        `damaged` names keys by feature set. If a receipt stores such a key, the new row replaces the old one.
        """
        receipts = [receipt for receipt in receipts if receipt.stored or receipt.rejected]
        # The digest covers the job too. After a `drop`, a later job may find the same shards and return equal receipts.
        digest = hashlib.sha256(b"\n".join([job.encode(), *sorted(map(to_json, receipts))])).hexdigest()
        change = changes.replace(self.catalog, receipts, manifest, damaged or {})
        version = self.catalog.commit(digest, "repair" if damaged else "featurize", job, change)
        return self.catalog.newest() if version is None else version

    def drop(self, keys: Mapping[str, Collection[str] | None], *, job: str = "") -> int | None:
        """Remove these keys from the catalog, by feature set. None instead of keys means the whole feature set.

        Returns the new version, or None if none of the keys was there. Older versions still name them, until `gc`
        deletes the versions that are not tagged.
        """
        return self.catalog.commit(secrets.token_hex(16), "drop", job, changes.drop(self.catalog, keys))

    def compact(self, min_files: int = COMPACT_FROM, *, attempts: int = MAX_ATTEMPTS) -> int | None:
        """Put the catalog's rows of each feature set with `min_files` or more data files into one file.

        Returns the new version, or None if no feature set has so many. Raises `LostRace` if other writers were first
        at every attempt.
        """
        change = changes.compact(self.catalog, min_files)
        return self.catalog.commit(secrets.token_hex(16), "compact", "", change, attempts)

    def speed(self, feature_set: str) -> float | None:
        """Assets per second of a worker, from the newest commit that encoded some of this feature set.

        None if none of the newest commits did.
        """
        for entry in itertools.islice(self.catalog.history(self.catalog.newest()), SPEED_FROM):
            for change in entry.note.changes if entry.note else ():
                if change.feature_set == feature_set and change.encoded and change.seconds > 0:
                    return change.encoded / change.seconds
        return None

    def add_spec(self, spec: EncoderSpec, encoder_name: str) -> None:
        """Store the spec of a feature set, unless it is there. Replace it if it is damaged."""
        specs.add_spec(self.storage, spec, encoder_name)

    def read_spec(self, fingerprint: str) -> StoredSpec:
        """The stored spec of a feature set. Raises `NotStored` if the store has none."""
        return specs.read_spec(self.storage, fingerprint)

    def add_manifest(self, manifest: Manifest) -> None:
        """Store a copy of the manifest under its digest, so that results can be shown without the corpus."""
        path = manifest_path(manifest.digest)
        if not self.storage.create(path, manifest.to_bytes()):
            try:
                self.read_manifest(manifest.digest)
            except Damaged:
                self.storage.replace(path, manifest.to_bytes())

    def read_manifest(self, digest: str) -> Manifest:
        """The stored copy of a manifest. Raises `Damaged` if its content does not match its digest."""
        path = manifest_path(digest)
        try:
            manifest = Manifest.read(self.storage.address(path))
        except InvalidInput as error:
            raise Damaged(f"{path}: {error.problem}", _ADD_AGAIN) from None
        if manifest.digest != digest:
            raise Damaged(f"{path}: not the rows that its name states", _ADD_AGAIN)
        return manifest

    def manifest_digests(self) -> list[str]:
        """The digests of all stored manifests, sorted."""
        return [digest_in(path) for path in self.storage.list(MANIFESTS)]

    def manifests(self) -> Iterator[Manifest]:
        """Yield every stored manifest."""
        return map(self.read_manifest, self.manifest_digests())
