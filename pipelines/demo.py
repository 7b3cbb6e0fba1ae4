"""The main job, whole, on real input: `make demo`, or python pipelines/demo.py --help.

Every step is a command that is printed before it runs, so that it can be repeated by hand. The corpus is Tux Paint's
stamps where apt-get is there, else a synthetic one; the encoders are HuBERT and CLIP where the model hub answers, else
the same architectures small and untrained.
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
    """Run the road from the corpus to three queries in one folder."""
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
    say(f"The store lies in {store}, the head in {run}. The whole took {time.monotonic() - started:.0f} s.")
    if encoders == UNTRAINED:
        say(
            "The recall is low because both encoders are UNTRAINED (random weights): the model hub did not answer. "
            "Name folders of weights by --speech hubert:FOLDER --image clip:ViT-B-32/FILE --text clip:ViT-B-32/FILE."
        )


def parse() -> argparse.Namespace:
    """The options of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="demo", help="where everything goes (default: demo)")
    parser.add_argument(
        "--corpus", help="your own table (CSV, JSONL, Parquet) or a folder of stamps, not the default corpus"
    )
    parser.add_argument("--limit", type=int, default=2500, help="about so many utterances; 0 takes all (default: 2500)")
    for modality in TRAINED:
        parser.add_argument(f"--{modality}", help=f"{modality} encoder, as {TRAINED[modality]}")
    return parser.parse_args()


def choose_encoders(options: argparse.Namespace) -> dict[str, str]:
    """What was named, else HuBERT and CLIP where the hub answers, else their untrained like."""
    from speechclip.encoders.weights import is_hub_reachable

    named = {modality: getattr(options, modality) for modality in TRAINED if getattr(options, modality)}
    if len(named) == len(TRAINED):
        return named
    is_reachable = is_hub_reachable()
    say(
        "The model hub answers: HuBERT and CLIP."
        if is_reachable
        else "The model hub does not answer: untrained encoders."
    )
    return {**(TRAINED if is_reachable else UNTRAINED), **named}


def ingest(options: argparse.Namespace, folder: Path, manifest: str) -> None:
    """The manifest of the named corpus, of the stamps, or of a synthetic corpus made here."""
    limit = ["--limit", str(options.limit)] if options.limit else []
    stamps = ["--split", "voice:ca", *limit, "--out", manifest]
    if options.corpus and Path(options.corpus).is_dir():
        speechclip("ingest", "tuxpaint", options.corpus, *stamps)
    elif options.corpus:
        speechclip("ingest", "table", options.corpus, "--out", manifest)
    elif not shutil.which("apt-get") or speechclip("ingest", "tuxpaint", "--fetch", *stamps, may_fail=True):
        say("Tux Paint's stamps can't be fetched here: a SYNTHETIC corpus, no human voice in it.")
        speechclip("ingest", "synthetic", str(folder / "synthetic-corpus"), "--out", manifest)


def ask(manifest: str, store: str, run: str) -> None:
    """Three questions to the store, by text, recording and picture, from the test split."""
    from speechclip.manifest import Manifest

    table = Manifest.read(manifest)
    rows = [row for row in table.select(["test"]).rows() if row["speech_key"] and row["image_key"] and row["text"]]
    for row, question in zip(rows[:: max(1, len(rows) // 3)], ("text", "audio", "image"), strict=False):
        asked = row["text"] if question == "text" else row[f"{question}_uri"]
        among = "image" if question == "audio" else "speech"
        speechclip("query", "--run", run, "--store", store, f"--{question}", asked, "--among", among, "-k", "3")


def speechclip(*arguments: str, may_fail: bool = False) -> int:
    """Print and run one command; its exit code. The demo ends with it if it failed."""
    say(f"\n$ speechclip {shlex.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "speechclip", *arguments], check=False).returncode
    if code and not may_fail:
        sys.exit(code)
    return code


def say(line: str) -> None:
    """A line between the commands' own output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
