"""The driver without Ray: the ledger, jobs that continue, rejected assets, and equal features for all task sizes."""

import csv
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.feature_sets import content
from support.stores import encode_all

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.errors import WorkLeft
from speechclip.featurization.driver import (
    COMPACT_ATTEMPTS,
    GroupCommitter,
    Summary,
    Work,
    commit_receipts,
    encode_inline,
    featurize_work,
    prepare_work,
)
from speechclip.featurization.plan import TaskSizes, cover
from speechclip.featurization.rejections import list_rejected
from speechclip.featurization.tasks import BatchSizes, EncoderRequest, decode_task, encode_task
from speechclip.manifest import Manifest
from speechclip.records import MODALITIES, Receipt, RejectedAsset
from speechclip.status import read_status
from speechclip.store import FeatureStore
from speechclip.store.catalog import Catalog
from speechclip.store.layout import job_path

TOY = [EncoderRequest(encoder_name="toy", modality=modality, codec="fp32") for modality in MODALITIES]
SMALL = TaskSizes(shard_items=5, chunk_rows=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen utterances of six things by three voices; the table beside its files."""
    return make_synthetic(tmp_path_factory.mktemp("corpus"), num_concepts=6, num_voices=3)


@pytest.fixture(scope="module")
def manifest(corpus: Path) -> Manifest:
    return read_table(str(corpus))


def open_work(
    uri: str,
    manifest: Manifest,
    requests: list[EncoderRequest] = TOY,
    sizes: TaskSizes = SMALL,
    retry: Collection[str] = (),
) -> Work:
    encoders = [(request, request.build().spec) for request in requests]
    return prepare_work(FeatureStore(uri), manifest, encoders, sizes, retry)


def featurize(
    uri: str,
    manifest: Manifest,
    requests: list[EncoderRequest] = TOY,
    *,
    sizes: TaskSizes = SMALL,
    batch_sizes: BatchSizes | None = None,
    max_rejected: float = 1.0,
    retry: Collection[str] = (),
) -> Summary:
    work = open_work(uri, manifest, requests, sizes, retry)
    return featurize_work(work, encode_inline(work, batch_sizes or BatchSizes()), max_rejected=max_rejected)


def ledger(summary: Summary) -> tuple[int, int, int, int, int]:
    return summary.planned, summary.stored_before, summary.encoded, summary.rejected, summary.missing


def test_the_first_run_encodes_all_and_the_second_nothing(store_uri: str, manifest: Manifest) -> None:
    first = featurize(store_uri, manifest)
    assert ledger(first) == (30, 0, 30, 0, 0)
    assert first.bytes > 0
    assert ledger(featurize(store_uri, manifest)) == (30, 30, 0, 0, 0)


def test_a_renamed_and_moved_corpus_encodes_nothing(tmp_path: Path, corpus: Path, manifest: Manifest) -> None:
    featurize(str(tmp_path / "store"), manifest)
    moved = Path(shutil.copytree(corpus.parent, tmp_path / "elsewhere"))
    rows = read_rows(moved / corpus.name)
    for number, row in enumerate(rows):
        renamed = f"renamed-{number}{Path(row['audio']).suffix}"
        (moved / row["audio"]).rename(moved / renamed)
        row["audio"] = renamed
    write_rows(moved / corpus.name, rows)
    again = read_table(str(moved / corpus.name))
    assert again.digest != manifest.digest
    assert ledger(featurize(str(tmp_path / "store"), again)) == (30, 30, 0, 0, 0)


def test_new_utterances_are_encoded_alone_into_one_shard(tmp_path: Path, manifest: Manifest) -> None:
    uri = str(tmp_path / "store")
    featurize(uri, Manifest(manifest.table.slice(0, 13)))
    before = set(FeatureStore(uri).storage.list("features"))
    summary = featurize(uri, manifest, [TOY[0]])
    assert ledger(summary) == (18, 13, 5, 0, 0)
    new = set(FeatureStore(uri).storage.list("features")) - before
    assert sorted(Path(path).suffix for path in new) == [".tar", ".xxh3"]


def test_another_layer_set_is_another_feature_set(tmp_path: Path, manifest: Manifest) -> None:
    uri = str(tmp_path / "store")
    featurize(uri, manifest, TOY[:1])
    other = EncoderRequest(encoder_name="toy", modality="speech", layers=(2,), codec="fp32")
    assert ledger(featurize(uri, manifest, [other])) == (18, 0, 18, 0, 0)
    snapshot = FeatureStore(uri).snapshot()
    full, one = sorted(
        (info.fingerprint for info in snapshot.feature_sets()), key=lambda f: -len(snapshot.feature_set(f).spec.layers)
    )
    key = manifest.assets("speech")[0].key
    np.testing.assert_array_equal(snapshot.feature_set(full)[key][2:], snapshot.feature_set(one)[key])


def test_other_task_and_batch_sizes_give_the_same_content(tmp_path: Path, manifest: Manifest) -> None:
    featurize(str(tmp_path / "a"), manifest)
    featurize(
        str(tmp_path / "b"),
        manifest,
        sizes=TaskSizes(shard_items=7, chunk_rows=2),
        batch_sizes=BatchSizes(speech_seconds=1, items=1),
    )
    assert content(FeatureStore(str(tmp_path / "a")).snapshot()) == content(
        FeatureStore(str(tmp_path / "b")).snapshot()
    )


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    for name in ("a", "b"):
        featurize(str(tmp_path / name), manifest)
    a, b = (FeatureStore(str(tmp_path / name)).storage for name in ("a", "b"))
    paths = list(a.list("features"))
    assert paths == list(b.list("features"))
    assert all(a.read(path) == b.read(path) for path in paths)


@pytest.mark.parametrize("num_done", [0, 1, 3, 5])
def test_an_interrupted_job_continues_and_makes_the_same_as_one_without_interruption(
    tmp_path: Path, manifest: Manifest, num_done: int
) -> None:
    """The first job ends between a shard and its commit. The second job reuses this shard and does not encode it."""
    uri = str(tmp_path / "cut")

    def first_only(work: Work) -> Iterator[Receipt]:
        for number, receipt in enumerate(encode_inline(work)):
            if number == num_done:
                raise KeyboardInterrupt
            yield receipt

    work = open_work(uri, manifest)
    with pytest.raises(KeyboardInterrupt):
        commit_receipts(first_only(work), GroupCommitter(work))
    again = open_work(uri, manifest)
    receipts = list(encode_inline(again))
    assert len(receipts) == work.plan.num_tasks - num_done
    assert receipts[0].num_encoded == 0
    committer = GroupCommitter(again)
    commit_receipts(receipts, committer)
    assert committer.summary().missing == 0
    featurize(str(tmp_path / "whole"), manifest)
    assert content(FeatureStore(uri).snapshot()) == content(FeatureStore(str(tmp_path / "whole")).snapshot())


def test_bad_sources_are_rejected_with_reasons_and_nothing_else_is_lost(tmp_path: Path, corpus: Path) -> None:
    folder = Path(shutil.copytree(corpus.parent, tmp_path / "corpus"))
    rows = read_rows(folder / corpus.name)
    ogg = next(row["audio"] for row in rows if row["audio"].endswith(".ogg"))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no recording")
    (folder / "cut.ogg").write_bytes((folder / ogg).read_bytes()[:-400])
    for row, audio in zip(rows, ("empty.wav", "text.wav", "cut.ogg"), strict=False):
        row["audio"] = audio
    rows[5]["image"] = "missing.png"
    write_rows(folder / corpus.name, rows)
    manifest = read_table(str(folder / corpus.name))
    uri = str(tmp_path / "store")
    summary = featurize(uri, manifest)
    assert (summary.rejected, summary.missing) == (4, 0)
    assert summary.planned == summary.encoded + summary.rejected
    reasons = sorted(row.reason for row in list_rejected(FeatureStore(uri), manifest))
    assert reasons == ["empty-audio", "source-missing", "truncated", "undecodable"]
    assert ledger(featurize(uri, manifest)) == (summary.planned, summary.encoded, 0, 4, 0)
    with pytest.raises(WorkLeft, match="4 of"):
        featurize(str(tmp_path / "strict"), manifest, max_rejected=0.1)
    kept = FeatureStore(str(tmp_path / "strict")).snapshot()
    assert sum(info.num_stored for info in kept.feature_sets()) > 0


def test_a_file_that_changed_since_ingest_is_rejected_for_that_manifest_alone(tmp_path: Path, corpus: Path) -> None:
    folder = Path(shutil.copytree(corpus.parent, tmp_path / "corpus"))
    manifest = read_table(str(folder / corpus.name))
    victim = Path(str(manifest.rows()[0]["audio_uri"]))
    original = victim.read_bytes()
    victim.write_bytes(original + b"more")
    uri = str(tmp_path / "store")
    assert ledger(featurize(uri, manifest, TOY[:1])) == (18, 0, 17, 1, 0)
    assert list_rejected(FeatureStore(uri), manifest)[0].reason == "source-changed"
    victim.write_bytes(original)
    summary = encode_all(FeatureStore(uri), manifest, TOY[:1], SMALL, retry=["source-changed"])
    assert ledger(summary) == (18, 17, 1, 0, 0)
    fresh = read_table(str(corpus))
    assert ledger(featurize(uri, fresh, TOY[:1])) == (18, 18, 0, 0, 0)


def test_an_asset_whose_first_copy_is_gone_is_stored_from_the_second(tmp_path: Path, corpus: Path) -> None:
    folder = Path(shutil.copytree(corpus.parent, tmp_path / "corpus"))
    rows = read_rows(folder / corpus.name)[:4]
    for number, row in enumerate(rows):
        for column in ("audio", "image"):
            copy = f"copy-{number}{Path(row[column]).suffix}"
            shutil.copy(folder / row[column], folder / copy)
            row[column] = copy
    originals = read_rows(folder / corpus.name)[:4]
    table = [row | {"id": f"{row['id']}-{kind}"} for kind, part in (("a", originals), ("b", rows)) for row in part]
    write_rows(folder / "twice.csv", table)
    manifest = read_table(str(folder / "twice.csv"))
    (folder / originals[0]["audio"]).unlink()
    (folder / originals[1]["audio"]).write_bytes(b"changed")
    (folder / originals[0]["image"]).unlink()
    summary = featurize(str(tmp_path / "store"), manifest)
    assert (summary.encoded, summary.rejected) == (summary.planned, 0)


def test_the_limit_on_rejected_assets_counts_like_the_ledger(tmp_path: Path, corpus: Path) -> None:
    """A chunk keeps all its rows, so a task may reject an asset that another job stored. It does not count."""
    folder = Path(shutil.copytree(corpus.parent, tmp_path / "corpus"))
    manifest = read_table(str(folder / corpus.name))
    uri, images = str(tmp_path / "store"), TOY[1:2]
    # The plan of all six pictures is open before another job stores five of them.
    open_work(uri, manifest, images, TaskSizes(chunk_rows=8))
    pictures = list(dict.fromkeys(row["image_uri"] for row in manifest.rows()))
    others = Manifest.from_rows([row for row in manifest.rows() if row["image_uri"] != pictures[5]])
    assert ledger(featurize(uri, others, images)) == (5, 0, 5, 0, 0)
    for name in pictures[:5]:
        Path(name).unlink()
    summary = featurize(uri, manifest, images, sizes=TaskSizes(chunk_rows=8), max_rejected=0.0)
    assert ledger(summary) == (6, 5, 1, 0, 0)


def test_an_asset_with_two_reasons_is_retried_by_either_and_listed_once(tmp_path: Path) -> None:
    """First the source was missing. Then it came back, but its bytes can't be decoded."""
    sound = tmp_path / "a.wav"
    sound.write_text("no recording")
    (tmp_path / "rows.csv").write_text("audio,split\na.wav,train\n")
    manifest, uri = read_table(str(tmp_path / "rows.csv")), str(tmp_path / "store")
    sound.unlink()
    featurize(uri, manifest, TOY[:1])
    sound.write_text("no recording")
    featurize(uri, manifest, TOY[:1], retry=["source-missing"])
    assert [entry.reason for entry in list_rejected(FeatureStore(uri), manifest)] == ["undecodable"]
    spec = TOY[0].build().spec
    for reason, num_missing in (("undecodable", 1), ("source-missing", 1), ("silent", 0)):
        part = cover(manifest, spec, FeatureStore(uri).snapshot(), [reason])
        assert (part.num_rejected, len(part.missing)) == (1 - num_missing, num_missing)


def test_a_rejection_lists_all_its_utterances_even_before_there_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "rows.csv").write_text(
        "id,audio,text,split\n1,gone.wav,,train\n2,gone.wav,,train\n3,empty.wav,,train\n4,empty.wav, ,train\n"
    )
    manifest, store = read_table(str(tmp_path / "rows.csv")), FeatureStore(str(tmp_path / "store"))
    (gone,) = list_rejected(store, manifest)
    assert (gone.reason, gone.feature_set, gone.utterances) == ("source-missing", "", ("1", "2"))
    featurize(store.storage.root, manifest)
    listed = [(entry.reason, entry.utterances) for entry in list_rejected(store, manifest)]
    assert listed == [("source-missing", ("1", "2")), ("empty-audio", ("3", "4")), ("empty-text", ("4",))]


def test_a_decoded_task_has_all_inputs_and_its_receipt_all_assets(tmp_path: Path, manifest: Manifest) -> None:
    work = open_work(str(tmp_path / "store"), manifest)
    for task in work.plan:
        decoded = decode_task(task, work.specs[task.feature_set])
        assert len(decoded.inputs()) == len(task.assets)
        receipt = encode_task(decoded, work.requests[task.feature_set].build(), work.store.storage, BatchSizes())
        assert [entry.key for entry in receipt.stored] == [asset.key for asset in task.assets]
        assert receipt.speech_seconds == sum(asset.seconds for asset in task.assets)


def test_an_interrupted_job_reports_its_ledger_and_its_state_before_the_error(
    tmp_path: Path, manifest: Manifest
) -> None:
    work, summaries, progress = open_work(str(tmp_path / "store"), manifest), [], []

    def interrupted() -> Iterator[Receipt]:
        yield next(encode_inline(work))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        featurize_work(
            work,
            interrupted(),
            on_summary=summaries.append,
            on_progress=lambda figures, is_last: progress.append((figures.tasks_done, is_last)),
        )
    (summary,) = summaries
    assert (summary.tasks_done, summary.encoded, summary.missing) == (1, 5, 25)
    assert progress == [(1, True)]
    status = read_status(work.store.storage, job_path(work.job))
    assert (status.state, status.command, status.figures["encoded"]) == ("interrupted", "featurize", 5)


def test_what_is_missing_in_the_end_is_an_error_unless_it_may_be(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(WorkLeft, match="30 assets are still missing; run the same command again"):
        featurize_work(open_work(str(tmp_path / "store"), manifest), [])
    assert featurize_work(open_work(str(tmp_path / "store"), manifest), [], must_be_whole=False).missing == 30


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_job_starts_although_another_one_wins_every_race(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    featurize(str(tmp_path / "s"), manifest)
    compact, num_tries = FeatureStore.compact, 0

    def lose(*_: object) -> bool:
        nonlocal num_tries
        num_tries += 1
        return False

    monkeypatch.setattr(FeatureStore, "compact", lambda store, **options: compact(store, 2, **options))
    store = FeatureStore(str(tmp_path / "s"))
    rejected = RejectedAsset(key="k", reason="silent", detail="", source=None)
    receipt = Receipt(
        task="t", feature_set=TOY[0].build().spec.fingerprint, shard="", stored=(), rejected=(rejected,), num_bytes=0,
        seconds=0.0, num_encoded=0,
    )  # fmt: skip
    store.commit([receipt], "m")
    monkeypatch.setattr(Catalog, "_write", lose)
    with caplog.at_level(logging.INFO):
        assert not open_work(str(tmp_path / "s"), manifest).plan.num_tasks
    assert num_tries == COMPACT_ATTEMPTS
    assert "the catalog is not compacted now" in caplog.text
