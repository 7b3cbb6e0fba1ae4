"""The command line. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 work is left, 130 interrupted, 143 ended by SIGTERM.
"""

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from speechclip import logs
from speechclip.cli import interrupts
from speechclip.errors import SpeechClipError, WorkLeft

EXIT_FAILED, EXIT_WORK_LEFT, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 3, 130, 143


class LazyGroup(click.Group):
    """Imports a command's module when the command is named, so that `--help` loads neither torch nor Ray."""

    commands_by_module = {
        "ingest": "speechclip.cli.ingest",
        "plan": "speechclip.cli.featurize",
        "featurize": "speechclip.cli.featurize",
        "rejected": "speechclip.cli.featurize",
        "recipes": "speechclip.cli.recipes",
        "train": "speechclip.cli.train",
        "status": "speechclip.cli.status",
        "evaluate": "speechclip.cli.evaluate",
        "keywords": "speechclip.cli.evaluate",
        "embed": "speechclip.cli.query",
        "query": "speechclip.cli.query",
        "export": "speechclip.cli.export",
        "import-checkpoint": "speechclip.cli.importing",
        "history": "speechclip.cli.store",
        "tag": "speechclip.cli.store",
        "verify": "speechclip.cli.upkeep",
        "repair": "speechclip.cli.upkeep",
        "drop": "speechclip.cli.store",
        "gc": "speechclip.cli.store",
    }

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The commands, in the order in which a user needs them."""
        return list(self.commands_by_module)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Import the command of that name."""
        import importlib

        if name not in self.commands_by_module:
            return None
        command: click.Command = getattr(importlib.import_module(self.commands_by_module[name]), name.replace("-", "_"))
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="speechclip")
@click.option("-v", "--verbose", is_flag=True, help="Write a log line for each commit to stderr.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar=logs.VARIABLE,
    help=f"Write sentences or JSON lines to stderr. Default: text, or the value of ${logs.VARIABLE}.",
)
def cli(verbose: bool, log_format: logs.Format) -> None:
    """Compute HuBERT and CLIP features once, and read them in every experiment.

    The usual order: ingest a corpus, plan, featurize, train a head, evaluate, embed, query.
    """
    logs.configure(log_format, verbose=verbose)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    interrupts.listen()
    try:
        cli.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except WorkLeft as error:
        _end(str(error), EXIT_WORK_LEFT)
    except SpeechClipError as error:
        _end(str(error), EXIT_FAILED)
    except (KeyboardInterrupt, click.Abort) as end:
        # click replaces both exceptions by its own Abort.
        code = EXIT_TERMINATED if isinstance(end.__cause__ or end, interrupts.Terminated) else EXIT_INTERRUPTED
        _end("interrupted; what was committed is kept; run the same command again to go on", code)
    except Exception as error:
        sentence = _outside_failure(error)
        if sentence is None:
            raise
        _end(sentence, EXIT_FAILED)


def _outside_failure(error: Exception) -> str | None:
    """One sentence for an error of the machine or of a storage client. None for a bug of ours."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename} " if error.filename else ""
        return f"{where}{error.strerror}; fix this and run the same command again"
    is_client = type(error).__module__.startswith(("botocore.", "_internal", "deltalake"))
    if not is_client and not isinstance(error, OSError):
        return None
    # `--help` must stay quick, so this import waits until here.
    from speechclip.storage.faults import fault_of, one_line

    fault = fault_of(error)
    cause = one_line(error) if fault is None else fault.cause
    return f"the storage failed ({cause}); what was committed is kept; fix this and run the same command again"


def _end(sentence: str, code: int) -> NoReturn:
    if logs.is_json():
        logs.log(sentence, logging.ERROR, exit_code=code)
    else:
        click.echo(f"error: {sentence}", err=True)
    sys.exit(code)
