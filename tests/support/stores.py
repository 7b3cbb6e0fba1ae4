"""A small true store, made by the inline road: toy encoders in fp32, a synthetic corpus, several shards and chunks."""

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.featurization.driver import GroupCommitter, Summary, commit_receipts, encode_inline, prepare_work
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import MODALITIES
from speechclip.store import FeatureStore

TOY = [EncoderRequest(encoder_name="toy", modality=modality, codec="fp32") for modality in MODALITIES]
SPEECH, IMAGE, TEXT = (request.build().spec.fingerprint for request in TOY)
SIZES = TaskSizes(shard_items=5, chunk_rows=4)


@cache
def synthetic() -> Manifest:
    """Eighteen utterances of six things by three voices; made once a process."""
    return read_table(str(make_synthetic(Path(mkdtemp(prefix="corpus-")), num_concepts=6, num_voices=3)))


def fill(uri: str, manifest: Manifest | None = None, group_size: int = 2) -> FeatureStore:
    """A store with everything that the manifest asks for, in commits of `group_size` tasks."""
    featurize(uri, manifest, group_size)
    return FeatureStore(uri)


def featurize(uri: str, manifest: Manifest | None = None, group_size: int = 2) -> Summary:
    """The last line of such a run."""
    return encode_all(FeatureStore(uri), manifest or synthetic(), TOY, SIZES, group_size=group_size)


def encode_all(
    store: FeatureStore,
    manifest: Manifest,
    requests: Iterable[EncoderRequest],
    sizes: TaskSizes = TaskSizes(),  # noqa: B008 (frozen)
    *,
    group_size: int = 256,
    retry: Collection[str] = (),
) -> Summary:
    """Compute in this process what the manifest lacks, in commits of `group_size` tasks; the ledger."""
    work = prepare_work(store, manifest, [(request, request.build().spec) for request in requests], sizes, retry)
    committer = GroupCommitter(work, group_size=group_size)
    commit_receipts(encode_inline(work), committer)
    return committer.summary()
