"""All commands on S3, with nothing but an AWS profile. No credential is left anywhere."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import s3_servers

from speechclip.cli import main
from speechclip.corpora.synthetic import make_synthetic
from speechclip.evaluation.evaluator import validator
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import open_pair
from speechclip.training.batches import Order, stored_rows
from speechclip.training.blueprint import configure_head
from speechclip.training.checkpoint import RunFolder
from speechclip.training.identity import FeatureSetRef, RunIdentity
from speechclip.training.loader import Loader
from speechclip.training.recipe import Recipe
from speechclip.training.trainer import Trainer

TOY = ("--speech", "toy", "--image", "toy", "--text", "toy")
SMALL = {
    "batch_size": 4, "max_steps": 4, "warmup_steps": 1, "num_heads": 4, "feed_forward_factor": 2, "embedding_width": 8,
    "validate_every": 2, "checkpoint_every": 2,
}  # fmt: skip
Speechclip = Callable[..., str]


@pytest.fixture
def speechclip(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Speechclip]:
    """Runs one command with `-v` in this process and returns its stdout. No output or log holds a credential."""
    shown: list[str] = []

    def run(*arguments: object) -> str:
        with caplog.at_level("INFO"):
            main(["-v", *map(str, arguments)])
        done = capsys.readouterr()
        shown.extend((done.out, done.err))
        return done.out

    yield run
    assert_no_credential("\n".join((*shown, caplog.text)).encode())


def assert_no_credential(data: bytes) -> None:
    for secret in (s3_servers.SECRET, s3_servers.KEY_ID, s3_servers.TOKEN):
        assert secret.encode() not in data


def scan(endpoint: str, bucket: str) -> int:
    """Check that no object holds a credential in its name, bytes or rows. Returns how many objects there are."""
    client, count = s3_servers.client(endpoint), 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            data = client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            rows = str(pq.read_table(io.BytesIO(data)).to_pylist()) if found["Key"].endswith(".parquet") else ""
            assert_no_credential(found["Key"].encode() + data + rows.encode())
            count += 1
    return count


def train_here(manifest: Manifest, store: FeatureStore, out: str) -> None:
    """What `speechclip train` does on a worker, without Ray."""
    recipe, snapshot = Recipe(name="small", learning_rate=1e-3, image_projection=True, **SMALL), store.snapshot()
    by_modality = {info.spec.modality: info for info in snapshot.feature_sets()}
    speech, image = by_modality["speech"], by_modality["image"]
    frames, vectors = open_pair(snapshot, speech.fingerprint, image.fingerprint)
    identity = RunIdentity(
        manifest=manifest.digest,
        catalog_version=snapshot.version,
        speech=FeatureSetRef.of(speech.spec, speech.encoder_name),
        image=FeatureSetRef.of(image.spec, image.encoder_name),
        recipe=recipe,
        head=configure_head(recipe, speech.spec, image.spec),
    )
    order = Order(stored_rows(manifest, "train", frames, vectors), recipe.batch_size, recipe.seed)
    loader = Loader(order, frames, vectors, recipe=recipe)
    validate = validator(manifest, "dev", frames, vectors)
    Trainer(identity=identity, loader=loader, folder=RunFolder(out), validate=validate).fit()


def go(speechclip: Speechclip, folder: Path, base: str, train: Callable[[str, str, str], None]) -> None:
    """Ingest, featurize, train, evaluate, embed and query below the address `base`, then look after the store."""
    corpus = make_synthetic(folder / "corpus", num_concepts=8, num_voices=3)
    manifest, store, run = f"{base}/m.parquet", f"{base}/store", f"{base}/run"
    speechclip("ingest", "table", corpus, "--out", manifest)
    there = ("--manifest", manifest, "--store", store)
    summary = json.loads(speechclip("featurize", "--inline", *there, *TOY, "--json"))
    assert summary["planned"] == summary["encoded"] == 40
    assert json.loads(speechclip("featurize", "--inline", *there, *TOY, "--json"))["encoded"] == 0
    train(manifest, store, run)
    report = json.loads(speechclip("evaluate", "--run", run, *there, "--split", "test", "--json"))
    assert report["num_utterances"] > 0
    assert json.loads(speechclip("embed", "--run", run, *there, "--json"))["encoded"] == 24
    sound = next(row["audio_uri"] for row in Manifest.read(manifest).rows())
    answers = json.loads(speechclip("query", "--run", run, "--store", store, "--audio", sound, "--json"))
    assert len(answers) == 5
    assert json.loads(speechclip("rejected", *there, "--json")) == []
    look_after(speechclip, store)


def look_after(speechclip: Speechclip, store: str) -> None:
    """Run every command of upkeep."""
    speechclip("tag", "paper", "--store", store)
    doomed = next(info.fingerprint for info in FeatureStore(store).snapshot().feature_sets() if not info.spec.is_frames)
    speechclip("drop", doomed, "--store", store)
    notes = [row["note"] for row in json.loads(speechclip("history", "--store", store, "--json"))]
    assert notes[0]["operation"] == "drop"
    speechclip("tag", "--delete", "paper", "--store", store)
    said = json.loads(speechclip("gc", "--now", "--dry-run", "--store", store, "--json"))
    assert said["files"] > 0
    assert json.loads(speechclip("gc", "--now", "--store", store, "--json")) == said
    found = json.loads(speechclip("verify", "--recompute", "3", "--store", store, "--json"))
    assert found["report"]["findings"] == []
    assert sum(part["assets"] for part in found["recomputed"]) == 3
    storage = FeatureStore(store).storage
    storage.delete([next(path for path in storage.list("features") if path.endswith(".tar"))])
    assert json.loads(speechclip("repair", "--inline", "--store", store, "--json"))["encoded"] > 0


def test_all_commands_work_on_s3_with_a_profile_alone(
    s3_endpoint: str, aws: Callable[..., None], tmp_path: Path, speechclip: Speechclip
) -> None:
    aws(**s3_servers.write_profile(tmp_path, s3_endpoint, is_temporary=True))
    bucket = s3_servers.new_bucket(s3_endpoint)

    def train(manifest: str, store: str, out: str) -> None:
        train_here(Manifest.read(manifest), FeatureStore(store), out)

    go(speechclip, tmp_path, f"s3://{bucket}/road", train)
    assert scan(s3_endpoint, bucket) > 30


@pytest.mark.slow
@pytest.mark.ray
def test_all_commands_work_on_seaweedfs_with_ray(
    seaweedfs_endpoint: str, aws: Callable[..., None], tmp_path: Path, speechclip: Speechclip
) -> None:
    """This server checks every signature. Training uses a Ray of its own, whose workers have only the profile."""
    aws(**s3_servers.write_profile(tmp_path, seaweedfs_endpoint))
    bucket = s3_servers.new_bucket(seaweedfs_endpoint)

    def train(manifest: str, store: str, out: str) -> None:
        recipe = [f"--set={name}={value}" for name, value in SMALL.items()]
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("speechclip")), "-v", "train", "--manifest", manifest,
                "--store", store, "--out", out, "--recipe", "demo-parallel", *recipe, "--workers", "1",
                "--num-cpus", "2",
            ],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        assert_no_credential(done.stdout + done.stderr)

    go(speechclip, tmp_path, f"s3://{bucket}/road", train)
    assert scan(seaweedfs_endpoint, bucket) > 30


@pytest.mark.slow
def test_a_wrong_secret_ends_with_one_sentence_that_does_not_show_it(
    seaweedfs_endpoint: str, aws: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = s3_servers.write_profile(tmp_path, seaweedfs_endpoint)
    credentials = Path(settings["AWS_SHARED_CREDENTIALS_FILE"])
    credentials.write_text(credentials.read_text().replace(s3_servers.SECRET, "another-secret"))
    aws(**settings)
    Manifest.from_rows([]).write(str(tmp_path / "m.parquet"))
    store = f"s3://{s3_servers.new_bucket(seaweedfs_endpoint)}/store"
    with pytest.raises(SystemExit) as end:
        main(["rejected", "--manifest", str(tmp_path / "m.parquet"), "--store", store])
    (sentence,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 1
    assert "403" in sentence
    assert "another-secret" not in sentence
    assert s3_servers.KEY_ID not in sentence
