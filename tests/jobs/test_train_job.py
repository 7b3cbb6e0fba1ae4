import contextlib
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import ray.util
from support.paired_corpus import SPEECH, Corpus, store_vectors, write_corpus

from speechclip.cli import main
from speechclip.errors import InvalidInput
from speechclip.evaluation.evaluator import validator
from speechclip.jobs import train as train_job
from speechclip.jobs.train import TrainRequest, identify, train
from speechclip.manifest import Manifest
from speechclip.storage import Storage
from speechclip.store import FeatureStore
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import RunInfo
from speechclip.training.metrics import read_metrics
from speechclip.training.progress import TrainingProgress
from speechclip.training.recipe import Recipe
from speechclip.training.run import load_run

# Ray's own code uses what it deprecates.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")]

RECIPE = Recipe(
    name="small", batch_size=9, max_steps=12, warmup_steps=2, learning_rate=1e-3, num_heads=4, feed_forward_factor=2,
    image_projection=True, embedding_width=8, validate_every=4, checkpoint_every=5,
)  # fmt: skip
SMALL = (
    "batch_size",
    "max_steps",
    "num_heads",
    "feed_forward_factor",
    "image_projection",
    "embedding_width",
    "validate_every",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("train-job") / "store"))


def request(corpus: Corpus, folder: Path, **options: object) -> TrainRequest:
    corpus.manifest.write(str(folder / "m.parquet"))
    plain = TrainRequest(
        manifest=str(folder / "m.parquet"), store=corpus.store_uri, out=str(folder / "run"), recipe=RECIPE, num_cpus=2
    )
    return msgspec.structs.replace(plain, **options)


def test_two_workers_train_on_ray_what_one_worker_trains_without(corpus: Corpus, tmp_path: Path):
    seen: list[TrainingProgress] = []
    asked = request(corpus, tmp_path, workers=2)
    info = train(asked, seen.append)
    assert load_run(asked.out).info == info
    assert info.identity.speech.fingerprint == SPEECH.fingerprint
    assert info.identity.untrained == [SPEECH.fingerprint]
    assert [progress.step for progress in seen] == [4, 8, 12]
    alone = str(tmp_path / "alone")
    single = corpus.trainer(RECIPE, alone, validate=validator(corpus.manifest, "dev", *corpus.features())).fit()
    assert single.order_digest == info.order_digest
    losses = [[line["loss"] for line in read_metrics(Storage(run))] for run in (asked.out, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    # Asked again it starts nothing; asked for something else it says so.
    found: list[str] = []
    assert train(asked, notify=found.append) == info
    assert found == ["finished already, nothing to train"]
    with pytest.raises(InvalidInput, match=r"finished run of another identity \(recipe\.seed was 7122, is 3\)"):
        train(msgspec.structs.replace(asked, recipe=msgspec.structs.replace(RECIPE, seed=3)))


def test_the_command_ends_with_one_line_of_json_and_status_shows_it(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = request(corpus, tmp_path)
    recipe = [f"--set={name}={value}" for name, value in msgspec.to_builtins(RECIPE).items() if name in SMALL]
    there = ["--manifest", asked.manifest, "--store", asked.store, "--out", asked.out, "--recipe", "demo-parallel"]
    main(["train", *there, *recipe])
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    info = load_run(asked.out).info
    assert (summary["run"], summary["steps"], summary["utterances"]) == (asked.out, 12, 36)
    assert (summary["order_digest"], summary["head_sha256"]) == (info.order_digest, info.head_sha256)
    assert summary["untrained"] == [SPEECH.fingerprint]
    assert "step 12 of 12, loss " in shown.err
    main(["status", "--run", asked.out])
    assert "12 steps" in capsys.readouterr().out
    main(["status", "--run", asked.out, "--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["state"], told["figures"]) == ("done", summary)


def test_ctrl_c_ends_a_run_by_keyboard_interrupt_and_the_next_one_says_where_it_goes_on(corpus: Corpus, tmp_path: Path):
    recipe = msgspec.structs.replace(RECIPE, max_steps=5000, validate_every=100, checkpoint_every=20)
    asked, interrupted = request(corpus, tmp_path, recipe=recipe), list[int]()

    def interrupt_once(progress: TrainingProgress) -> None:
        if progress.step >= 20 and not interrupted:
            interrupted.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)

    def stop(words: str) -> None:
        raise RuntimeError(words)

    with pytest.raises(KeyboardInterrupt):
        train(asked, interrupt_once)
    assert interrupted
    assert RunFolder(asked.out).finished() is None
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    with pytest.raises(RuntimeError, match=r"goes on after step [1-9]"):
        train(asked, notify=stop)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_goes_on_from_the_last_checkpoint(corpus: Corpus, tmp_path: Path):
    recipe = msgspec.structs.replace(RECIPE, max_steps=600, validate_every=100, checkpoint_every=20)
    asked = request(corpus, tmp_path, recipe=recipe)
    killed: list[int] = []

    def kill_once(progress: TrainingProgress) -> None:
        if not killed:
            killed.append(progress.step)
            kill_worker()

    info = train(asked, kill_once)
    assert killed
    assert info.num_steps == 600
    assert [line["step"] for line in read_metrics(Storage(asked.out))] == list(range(1, 601))
    assert RunFolder(asked.out).steps()[-1] == 600


def kill_worker() -> None:
    """SIGKILL to the worker processes of this process's own cluster, and to no other."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
    ours = [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]
    workers = [pid for pid in ours if b"RayTrainWorker" in names[pid]]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


def test_a_run_takes_the_version_it_is_pinned_to_and_one_cut_short_its_own(corpus: Corpus, tmp_path: Path):
    uri = str(shutil.copytree(corpus.store_uri, tmp_path / "store"))
    corpus, store = dataclasses.replace(corpus, store_uri=uri), FeatureStore(uri)
    pinned = store.snapshot().version
    folder = RunFolder(str(tmp_path / "run"))

    def stop_after_a_checkpoint(progress: TrainingProgress) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt

    validate = validator(corpus.manifest, "dev", *corpus.features())
    trainer = corpus.trainer(RECIPE, folder.uri, validate=validate, on_progress=stop_after_a_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    newest = store.drop({corpus.image.fingerprint: [corpus.manifest.rows()[0]["image_key"]]})
    assert newest is not None

    def version_of(run: RunFolder, version: int | None = None) -> int:
        return identify(request(corpus, tmp_path, catalog_version=version), run)[0].catalog_version

    new = RunFolder(str(tmp_path / "new"))
    assert (version_of(new), version_of(new, pinned), version_of(folder)) == (newest, pinned, pinned)


@pytest.mark.parametrize(("words", "expected"), [((), None), (("--version", "0"), 0), (("--version", "paper"), 1)])
def test_the_command_pins_by_number_and_by_tag(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: int | None
):
    uri = str(shutil.copytree(corpus.store_uri, tmp_path / "store"))
    FeatureStore(uri).tags.create("paper", 1)
    asked: list[TrainRequest] = []

    def note(request: TrainRequest, *_: object) -> None:
        asked.append(request)
        raise InvalidInput("enough")

    monkeypatch.setattr(train_job, "train", note)
    corpus.manifest.write(str(tmp_path / "m.parquet"))
    with pytest.raises(SystemExit):
        main(["train", "--manifest", str(tmp_path / "m.parquet"), "--store", uri, "--out", str(tmp_path / "run"),
              "--recipe", "demo-parallel", *words])  # fmt: skip
    assert [request.catalog_version for request in asked] == [expected]


def test_more_workers_than_the_cluster_holds_end_with_a_sentence(corpus: Corpus, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"9 workers need 2\.25 CPUs, the Ray cluster has 2"):
        train(request(corpus, tmp_path, workers=9))
    with pytest.raises(InvalidInput, match="0 workers asked for"):
        train(request(corpus, tmp_path, workers=0))
    with pytest.raises(InvalidInput, match="0 image feature sets fit for 'clip'"):
        train(request(corpus, tmp_path, image="clip"))


@pytest.fixture(scope="module")
def clip_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(str(tmp_path_factory.mktemp("train-job-clip") / "store"), with_clip=True)


KEYWORDS = Recipe(
    name="keywords", head="hybrid", batch_size=9, max_steps=4, warmup_steps=2, learning_rate=1e-3, num_keywords=3,
    text_weight=0.5, norm_scope="synchronised", validate_every=2, checkpoint_every=2,
)  # fmt: skip


def test_a_head_with_keywords_trains_on_ray_and_is_loaded_with_its_words(clip_corpus: Corpus, tmp_path: Path):
    asked = request(clip_corpus, tmp_path, recipe=KEYWORDS, workers=2)
    info = train(asked)
    assert info.identity == clip_corpus.identity(KEYWORDS)
    trained = load_run(asked.out)
    assert trained.vocabulary == clip_corpus.vocabulary
    alone = str(tmp_path / "alone")
    clip_corpus.trainer(KEYWORDS, alone).fit()
    losses = [[line["loss"] for line in read_metrics(Storage(run))] for run in (asked.out, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_manifest_without_images_or_captions_is_refused_before_anything_starts(clip_corpus: Corpus, tmp_path: Path):
    for column, what in (("image_key", "an image"), ("text_key", "a text")):
        rows = [row | {column: None} for row in clip_corpus.manifest.rows()]
        asked = request(Corpus(Manifest.from_rows(rows), clip_corpus.store_uri), tmp_path, recipe=KEYWORDS)
        with pytest.raises(
            InvalidInput, match=f"none of the 36 utterances of split 'train' has {what}, and recipe key"
        ):
            train(asked)


def test_keywords_need_the_clip_that_made_the_images(corpus: Corpus, tmp_path: Path):
    rows = [row | {"text": "a dog", "text_key": "0" * 64} for row in corpus.manifest.rows()]
    asked = request(Corpus(Manifest.from_rows(rows), corpus.store_uri), tmp_path, recipe=KEYWORDS)
    with pytest.raises(InvalidInput, match="0 text feature sets fit for 'toy'"):
        train(asked)
    no_texts = msgspec.structs.replace(KEYWORDS, text_weight=0.0)
    with pytest.raises(InvalidInput, match="toy has no text tower of CLIP"):
        train(msgspec.structs.replace(asked, recipe=no_texts))


def test_texts_of_another_clip_than_the_images_are_refused_for_keywords(clip_corpus: Corpus, tmp_path: Path):
    assert clip_corpus.text is not None
    store = FeatureStore(clip_corpus.store_uri)
    other = msgspec.structs.replace(clip_corpus.text, weights="f" * 64)
    key = clip_corpus.manifest.rows()[0]["text_key"]
    store_vectors(store, other, "clip:another", {key: np.zeros(other.width, "<f4")}, set())
    asked = request(clip_corpus, tmp_path, recipe=KEYWORDS, text="clip:another")
    with pytest.raises(InvalidInput, match=f"{other.fingerprint} and images of .* are of different CLIP models"):
        identify(asked, RunFolder(asked.out))


def test_an_imported_head_is_not_trained_on(corpus: Corpus, tmp_path: Path):
    identity = msgspec.structs.replace(corpus.identity(RECIPE), manifest="", catalog_version=-1, imported="0" * 64)
    info = RunInfo(
        identity=identity, num_rows=0, num_missing=0, batch_size=9, num_steps=1, order_digest="", head_step=1,
        best=None, head_sha256="",
    )  # fmt: skip
    RunFolder(str(tmp_path / "run")).finish(info, {})
    with pytest.raises(InvalidInput, match="holds a head imported from a checkpoint"):
        train(request(corpus, tmp_path))
