"""The command line. Results go to stdout, all else to stderr; exit codes: 0 done, 1 failed, 2 usage, 3 work left."""

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
    """A group whose commands are imported when they are named, so that `--help` loads neither torch nor Ray."""

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
        """The commands, in the order of the road."""
        return list(self.commands_by_module)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, its module imported now."""
        import importlib

        if name not in self.commands_by_module:
            return None
        command: click.Command = getattr(importlib.import_module(self.commands_by_module[name]), name.replace("-", "_"))
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="speechclip")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, a line a commit, to stderr.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar=logs.VARIABLE,
    help=f"What stderr holds: sentences, or a JSON object a line; default text, or ${logs.VARIABLE}.",
)
def cli(verbose: bool, log_format: logs.Format) -> None:
    """Features of frozen HuBERT and CLIP, computed once and trained from for ever.

    The road: ingest a corpus, plan, featurize, train a head, evaluate, embed, query.
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
        # click turns either into its own Abort.
        code = EXIT_TERMINATED if isinstance(end.__cause__ or end, interrupts.Terminated) else EXIT_INTERRUPTED
        _end("interrupted; all that was committed is kept, run the same command again to go on", code)
    except Exception as error:
        sentence = _outside_failure(error)
        if sentence is None:
            raise
        _end(sentence, EXIT_FAILED)


def _outside_failure(error: Exception) -> str | None:
    """What to say of an error of the machine or of a storage client's own tree; None for a bug of ours."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename} " if error.filename else ""
        return f"{where}{error.strerror}; mend that and run the same command again"
    is_client = type(error).__module__.startswith(("botocore.", "_internal", "deltalake"))
    if not is_client and not isinstance(error, OSError):
        return None
    # These trees a quick `--help` must not import.
    from speechclip.storage.retry import fault_of, one_line

    fault = fault_of(error)
    cause = one_line(error) if fault is None else fault.cause
    return f"the storage failed ({cause}); what was committed is kept, mend that and run the same command again"


def _end(sentence: str, code: int) -> NoReturn:
    if logs.is_json():
        logs.log(sentence, logging.ERROR, exit_code=code)
    else:
        click.echo(f"error: {sentence}", err=True)
    sys.exit(code)
