"""How a running featurize or embed job is shown: a line every few seconds, and its summary at the end."""

import sys
from collections.abc import Callable, Iterator

import click
import msgspec

from speechclip.api.features import encode as encode_tasks
from speechclip.cli.interrupts import stop_on_signal
from speechclip.cli.terminal import counted, human_bytes, human_seconds, rewrite, say
from speechclip.config import Settings
from speechclip.featurization.driver import Summary, Work, featurize_work
from speechclip.featurization.progress import FeaturizeProgress
from speechclip.records import Receipt

LOG_SECONDS, TERMINAL_SECONDS = 5.0, 0.5


def encode(work: Work, settings: Settings, *, inline: bool, num_cpus: int | None) -> Iterator[Receipt]:
    """The receipts of all open tasks, made in this process or on Ray as the settings say."""
    return encode_tasks(
        work,
        settings.featurize,
        inline=inline,
        num_cpus=num_cpus,
        runtime_env=settings.runtime_env,
        node_wait_seconds=settings.node_wait_seconds,
        on_message=say,
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
        stop_on_signal(receipts),
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
        hours = f"{progress.speech_seconds / 3600:.2f} h of speech, {rate:.1f} times real time"
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
