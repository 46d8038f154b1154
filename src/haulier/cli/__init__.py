"""The command line. Groups are imported when they are used, so that `--help` costs nothing."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from haulier.cli.output import EXIT_CODES, Failure, complain

_COMMANDS = {
    "audit": ("haulier.cli.audit:audit", "Who did what, and whether the log is sound."),
    "batches": ("haulier.cli.batches:batches", "List, watch, pause, cancel, retry, export."),
    "bench": ("haulier.cli.bench:bench", "Measure what one process does on a store."),
    "config": ("haulier.cli.config:config", "Change what all workers go by, while they run."),
    "demo": ("haulier.cli.demo:demo", "Run two real batches here and now and show the result."),
    "echo": ("haulier.cli.echo:echo", "Serve what proxies are checked against."),
    "enqueue": ("haulier.cli.enqueue:enqueue", "Enqueue one job of any kind."),
    "events": ("haulier.cli.events:events", "Print what happens to jobs, one line an event."),
    "jobs": ("haulier.cli.jobs:jobs", "List, show, watch, cancel, retry, delete."),
    "limits": ("haulier.cli.limits:limits", "List, set and delete limits and circuit breakers."),
    "queues": ("haulier.cli.queues:queues", "What waits where; pause, resume, weigh."),
    "run": ("haulier.cli.run:run", "Run a bulk kind over an input file."),
    "schedules": ("haulier.cli.schedules:schedules", "What is enqueued by itself, and when."),
    "serve": ("haulier.cli.serve:serve", "Serve the HTTP API with one embedded worker."),
    "store": ("haulier.cli.store:store", "Copy a store into another one, look at its health."),
    "token": ("haulier.cli.tokens:token", "Make, list, revoke what the API recognises you by."),
    "webhook": ("haulier.cli.webhooks:webhook", "Who is told of what happens, by signed messages."),
    "worker": ("haulier.cli.worker:worker", "Run workers until stopped."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from the table above: no command is imported to be described."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for one that does not exist."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1) if args else []
            if near:
                raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="haulier")
def cli() -> None:
    """haulier: bulk work, run reliably.

    \b
    haulier demo                     see it work
    haulier serve --no-token         HTTP API and a worker on one SQLite file
    haulier run media-uniq --help    renditions of pictures for many accounts
    haulier batches list             what is going on
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with one of the codes in `output.EXIT_CODES`."""
    try:
        code: Any = cli.main(args=arguments, standalone_mode=False)
    except Failure as failure:
        sys.exit(complain(failure.error, json_output=failure.json_output))
    except click.exceptions.Abort:
        sys.exit(EXIT_CODES["interrupted"])
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_CODES["usage"])
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing left to say.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
