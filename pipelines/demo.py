"""Run the whole project on a small corpus: `make demo`, or python pipelines/demo.py --help.

The demo ingests a corpus, computes its features, trains a head, evaluates it and asks three questions. Each step is a
command. The demo prints the command before it runs it, so you can repeat it by hand.

The corpus is Tux Paint's stamps if apt-get exists, else a synthetic one. The encoders are HuBERT and CLIP if the model
hub can be reached, else small untrained models of the same architectures.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TRAINED = {
    "speech": "hubert:facebook/hubert-base-ls960",
    "image": "clip:ViT-B-32/openai",
    "text": "clip:ViT-B-32/openai",
}
UNTRAINED = {"speech": "hubert:untrained-tiny", "image": "clip:untrained-tiny", "text": "clip:untrained-tiny"}


def main() -> None:
    """Run all steps, from the corpus to three queries, in one folder."""
    options = parse()
    started = time.monotonic()
    folder = Path(options.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    manifest, store, run = (str(folder / name) for name in ("manifest.parquet", "store", "run"))
    encoders = choose_encoders(options)
    if not Path(manifest).exists():
        ingest(options, folder, manifest)
    base = ["--manifest", manifest, "--store", store]
    specs = [part for modality, spec in encoders.items() for part in (f"--{modality}", spec)]
    speechclip("plan", *base, *specs)
    speechclip("featurize", *base, *specs)
    speechclip("train", *base, "--recipe", "demo-parallel", "--workers", "2", "--out", run)
    speechclip("evaluate", "--run", run, *base, "--split", "test")
    speechclip("embed", "--run", run, *base)
    ask(manifest, store, run)
    say(f"The store is {store}, the head is in {run}. The demo took {time.monotonic() - started:.0f} s.")
    if encoders == UNTRAINED:
        say(
            "The recall is low because both encoders are UNTRAINED (random weights): the model hub cannot be reached. "
            "If you have weights, name them: --speech hubert:FOLDER --image clip:ViT-B-32/FILE "
            "--text clip:ViT-B-32/FILE."
        )


def parse() -> argparse.Namespace:
    """The options of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="demo", help="the folder for all files (default: demo)")
    parser.add_argument(
        "--corpus", help="a table of your own (CSV, JSONL, Parquet) or a folder of stamps, instead of the default"
    )
    parser.add_argument(
        "--limit", type=int, default=2500, help="about how many utterances; 0 takes all (default: 2500)"
    )
    for modality in TRAINED:
        parser.add_argument(f"--{modality}", help=f"encoder of {modality}, such as {TRAINED[modality]}")
    return parser.parse_args()


def choose_encoders(options: argparse.Namespace) -> dict[str, str]:
    """The encoder of each modality: the named one, else a trained one if the hub can be reached, else an untrained."""
    from speechclip.encoders.weights import is_hub_reachable

    named = {modality: getattr(options, modality) for modality in TRAINED if getattr(options, modality)}
    if len(named) == len(TRAINED):
        return named
    is_reachable = is_hub_reachable()
    say(
        "The model hub can be reached. The encoders are HuBERT and CLIP."
        if is_reachable
        else "The model hub cannot be reached. The encoders are untrained."
    )
    return {**(TRAINED if is_reachable else UNTRAINED), **named}


def ingest(options: argparse.Namespace, folder: Path, manifest: str) -> None:
    """Write the manifest of the named corpus, or of the stamps, or of a synthetic corpus."""
    limit = ["--limit", str(options.limit)] if options.limit else []
    stamps = ["--split", "voice:ca", *limit, "--out", manifest]
    if options.corpus and Path(options.corpus).is_dir():
        speechclip("ingest", "tuxpaint", options.corpus, *stamps)
    elif options.corpus:
        speechclip("ingest", "table", options.corpus, "--out", manifest)
    elif not shutil.which("apt-get") or speechclip("ingest", "tuxpaint", "--fetch", *stamps, may_fail=True):
        say("Tux Paint's stamps cannot be downloaded here. The corpus is SYNTHETIC, without human voices.")
        speechclip("ingest", "synthetic", str(folder / "synthetic-corpus"), "--out", manifest)


def ask(manifest: str, store: str, run: str) -> None:
    """Ask the store by a text, a recording and a picture of the test split."""
    from speechclip.manifest import Manifest

    table = Manifest.read(manifest)
    rows = [row for row in table.select(["test"]).rows() if row["speech_key"] and row["image_key"] and row["text"]]
    for row, question in zip(rows[:: max(1, len(rows) // 3)], ("text", "audio", "image"), strict=False):
        asked = row["text"] if question == "text" else row[f"{question}_uri"]
        among = "image" if question == "audio" else "speech"
        speechclip("query", "--run", run, "--store", store, f"--{question}", asked, "--among", among, "-k", "3")


def speechclip(*arguments: str, may_fail: bool = False) -> int:
    """Print and run one command. Returns its exit code. If it fails, the demo ends, unless it may fail."""
    say(f"\n$ speechclip {shlex.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "speechclip", *arguments], check=False).returncode
    if code and not may_fail:
        sys.exit(code)
    return code


def say(line: str) -> None:
    """Print a line between the outputs of the commands."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
