"""How a running job is shown: a line every few seconds, and its file for `speechclip status`."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from speechclip.cli.interrupts import heed
from speechclip.cli.terminal import counted, human_bytes, human_seconds, rewrite, say
from speechclip.config import Settings
from speechclip.errors import WorkLeft
from speechclip.featurization.driver import Committer, Summary, Work, commit_receipts, encode_inline
from speechclip.featurization.progress import FeaturizeProgress, Tally
from speechclip.records import Receipt, Record
from speechclip.status import Reporter
from speechclip.storage import Storage
from speechclip.store.layout import job_path

LOG_SECONDS, TERMINAL_SECONDS = 5.0, 0.5


def follow(
    storage: Storage, path: str, *, job: str, command: str, look: Callable[[], Any], sentence: Callable[[Any], str]
) -> Reporter:
    """A reporter to open while the job runs: `sentence` puts what `look` gives in words."""

    def tell(figures: Record, is_last: bool) -> None:
        rewrite(sentence(figures), is_end=is_last, run=job, progress=msgspec.to_builtins(figures))

    seconds = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    return Reporter(storage, path, job=job, command=command, look=look, tell=tell, tell_seconds=seconds)


def encode(work: Work, settings: Settings, *, inline: bool, num_cpus: int | None) -> Iterator[Receipt]:
    """The receipts of all open tasks, made in this process or on Ray as the settings say."""
    options = settings.featurize
    if inline or not work.plan.tasks:
        return encode_inline(work, options.batches)
    from speechclip.jobs.cluster import connect
    from speechclip.jobs.featurize import encode_on_ray

    connect(num_cpus or options.num_cpus, settings.runtime_env)
    return encode_on_ray(
        work,
        options.batches,
        node_wait_seconds=settings.node_wait_seconds,
        no_progress_seconds=options.no_progress_seconds,
        tell=say,
    )


def carry_out(
    work: Work,
    receipts: Iterator[Receipt],
    command: str,
    show: Callable[[Summary], None],
    *,
    must_be_whole: bool,
    max_rejected: float = 1.0,
    group_seconds: float = 20.0,
) -> None:
    """Commit what comes, told while it runs and summed up as its last line.

    `WorkLeft` where something is missing in the end although it must be whole.
    """
    committer, tally = Committer(work, group_seconds=group_seconds), Tally(work)
    with follow(
        work.store.storage,
        job_path(work.job),
        job=work.job,
        command=command,
        look=tally.look if work.plan.tasks else lambda: None,
        sentence=featurize_sentence,
    ) as reporter:
        try:
            commit_receipts(tally.watch(heed(receipts)), committer, max_rejected=max_rejected)
        finally:
            summary = committer.summary()
            reporter.conclude(summary)
            show(summary)
            click.echo(msgspec.json.encode(summary))
        if summary.missing and must_be_whole:
            raise WorkLeft(f"{summary.missing} assets are still missing; run the same command again")


def featurize_sentence(progress: FeaturizeProgress) -> str:
    """How far a featurize run is, in one line."""
    parts = [f"{progress.tasks_done:,} of {counted(progress.tasks, 'task')}"]
    if progress.utterances:
        rate = progress.speech_seconds / max(progress.seconds, 1e-9)
        hours = f"{progress.speech_seconds / 3600:.2f} h of speech at {rate:.1f} s a second"
        parts.append(f"{counted(progress.utterances, 'utterance')} ({hours})")
    parts += [counted(count, what) for what, count in (("image", progress.images), ("text", progress.texts)) if count]
    parts.append(f"{human_bytes(progress.bytes)} written")
    parts.append(f"{progress.rejected:,} rejected")
    parts.append(progress.bound_by if progress.bound_by == "starting" else f"bound by {progress.bound_by}")
    if progress.eta_seconds and not progress.is_eta_whole:
        parts.append(f"at least {human_seconds(progress.eta_seconds)} left")
    elif progress.is_eta_whole and progress.eta_seconds is not None:
        parts.append(f"{human_seconds(progress.eta_seconds)} left")
    else:
        parts.append("time left not known yet")
    return ", ".join(parts)
