"""How a running featurize or embed job is shown: a line every few seconds, and its summary at the end."""

import sys
from collections.abc import Callable, Iterator

import click
import msgspec

from speechclip.cli.interrupts import heed
from speechclip.cli.terminal import counted, human_bytes, human_seconds, rewrite, say
from speechclip.config import Settings
from speechclip.featurization.driver import Summary, Work, encode_inline, featurize_work
from speechclip.featurization.progress import FeaturizeProgress
from speechclip.records import Receipt

LOG_SECONDS, TERMINAL_SECONDS = 5.0, 0.5


def encode(work: Work, settings: Settings, *, inline: bool, num_cpus: int | None) -> Iterator[Receipt]:
    """The receipts of all open tasks, made in this process or on Ray as the settings say."""
    options = settings.featurize
    if inline or not work.plan.num_tasks:
        return encode_inline(work, options.batches)
    from speechclip.jobs.cluster import connect
    from speechclip.jobs.featurize import encode_on_ray

    connect(num_cpus or options.num_cpus, settings.runtime_env)
    return encode_on_ray(
        work,
        options.batches,
        node_wait_seconds=settings.node_wait_seconds,
        no_progress_seconds=options.no_progress_seconds,
        notify=say,
    )


def follow(
    work: Work,
    receipts: Iterator[Receipt],
    command: str,
    show: Callable[[Summary], None],
    *,
    must_be_whole: bool,
    max_rejected: float = 1.0,
    group_seconds: float,
) -> None:
    """Run the job by `featurize_work`. Show its progress on stderr, and its summary by `show` and as JSON on stdout."""

    def tell(progress: FeaturizeProgress, is_last: bool) -> None:
        rewrite(featurize_sentence(progress), is_end=is_last, run=work.job, progress=msgspec.to_builtins(progress))

    def conclude(summary: Summary) -> None:
        show(summary)
        click.echo(msgspec.json.encode(summary))

    featurize_work(
        work,
        heed(receipts),
        command=command,
        must_be_whole=must_be_whole,
        max_rejected=max_rejected,
        group_seconds=group_seconds,
        progress_seconds=TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
        on_progress=tell,
        on_summary=conclude,
    )


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
