"""status: how far a job is, or how it ended. Reads the status files on storage, so it works from any machine."""

from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from speechclip.cli.options import settings_options
from speechclip.cli.terminal import console, human_bytes, human_seconds, say, show, table
from speechclip.config import Settings

SHOWN_JOBS = 10


@click.command()
@settings_options("store", "run", "json")
@click.argument("name", metavar="[JOB]", required=False)
def status(settings: Settings, as_json: bool, name: str | None) -> None:
    """Show the last jobs of a store, or how far one job is. JOB is its name or `last`; --run shows a training.

    A running job updates its status every ten seconds. If it has been silent for a minute, it was killed or it lost
    its connection to the storage.

    Example: speechclip status last --store S
    """
    from speechclip.errors import Damaged, NotStored
    from speechclip.status import JobStatus, read_status
    from speechclip.storage import Storage
    from speechclip.store.layout import JOBS, job_path
    from speechclip.training.checkpoint import STATUS

    found: list[JobStatus] = []
    if settings.run is not None and name is None:
        run = Storage(settings.run)
        if run.size(STATUS) is not None:
            found.append(read_status(run, STATUS))
    if settings.store is not None or not found:
        storage = Storage(settings.need("store"))
        paths = sorted(storage.list(JOBS)) if storage.exists(JOBS) else []
        if name not in (None, "last"):
            paths = [path for path in paths if path == job_path(str(name))]
            if not paths:
                raise NotStored(f"{storage.root}: no job {name}", "list the last jobs by `speechclip status`")
        for path in paths[-1 if name == "last" else -SHOWN_JOBS :]:
            try:
                found.append(read_status(storage, path))
            except Damaged as error:
                say(f"note: {error}")
    now = datetime.now(UTC)
    if as_json:
        click.echo(msgspec.json.encode([msgspec.to_builtins(one) | {"silent": one.is_silent(now)} for one in found]))
        return
    if name is not None:
        for one in found:
            _show_one(one, now)
        return
    shown = table("job", "command", "state", "began (UTC)", "last update", "how far")
    for one in found:
        began = f"{one.started:%Y-%m-%d %H:%M:%S}"
        shown.add_row(one.job, one.command, _state(one, now), began, _ago(one, now), _how_far(one))
    show(shown, "no job has written its status here yet")


def _show_one(one: Any, now: datetime) -> None:
    shown = table("", "")
    shown.show_header = False
    rows = {
        "job": one.job,
        "command": one.command,
        "state": _state(one, now),
        "began": f"{one.started:%Y-%m-%d %H:%M:%S} UTC on {one.host}",
        "last update": _ago(one, now),
    }
    figures = {name.replace("_", " "): _figure(name, value) for name, value in one.figures.items() if name != "run"}
    for name, value in (rows | figures).items():
        shown.add_row(name, value)
    console().print(shown)
    if one.error:
        say(f"it ended with: {one.error}")


def _state(one: Any, now: datetime) -> str:
    return "silent: killed or disconnected" if one.is_silent(now) else str(one.state)


def _ago(one: Any, now: datetime) -> str:
    return f"{human_seconds(max(0.0, (now - one.updated).total_seconds()))} ago"


def _how_far(one: Any) -> str:
    figures = one.figures
    if "step" in figures:
        left = f", {human_seconds(figures['eta_seconds'])} left" if one.state == "running" else ""
        return f"step {figures['step']:,} of {figures['max_steps']:,}, loss {figures['loss']:.4f}{left}"
    if "steps" in figures:
        return f"{figures['steps']:,} steps"
    if "tasks_failed" in figures:
        settled = figures["stored_before"] + figures["encoded"]
        return f"{settled:,} of {figures['planned']:,} stored, {figures['rejected']:,} rejected"
    if "tasks_done" in figures:
        left = human_seconds(figures["eta_seconds"]) if figures["eta_seconds"] is not None else "unknown"
        return f"{figures['tasks_done']:,} of {figures['tasks']:,} tasks, {left} left"
    return ""


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if name == "bytes":
        return human_bytes(value)
    if name.endswith("seconds") or name == "seconds":
        return human_seconds(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
