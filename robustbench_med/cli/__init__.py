"""The command line. Each command imports the heavy libraries that it needs."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from robustbench_med.cli import (
    dataset_command,
    export_command,
    inspect_commands,
    inspect_data,
    pack_command,
    report_command,
    run_commands,
    stopping,
    train_command,
    verify_command,
)
from robustbench_med.cli.streams import lasting_streams
from robustbench_med.errors import BenchError
from robustbench_med.version import __version__

app = typer.Typer(
    name="robustbench_med",
    help="Measure how well medical image models withstand adversarial attacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (
    run_commands,
    report_command,
    verify_command,
    inspect_data,
    inspect_commands,
    pack_command,
    export_command,
    train_command,
    dataset_command,
):
    commands.register(app)
# Whole sentences: click would cut them at its width.
for info in app.registered_commands:
    if info.callback is not None and info.callback.__doc__:
        info.short_help = info.callback.__doc__.splitlines()[0]


def _print_version(requested: bool) -> bool:
    if requested:
        typer.echo(f"robustbench_med {__version__}")
        raise typer.Exit
    return requested


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Define the options that come before a command."""


INTERRUPTED = 130  # typer's answer to Ctrl-C


def main() -> None:
    """Run the command line. A user's mistake prints one line and ends with exit code 2."""
    before = stopping.listen()
    try:
        with lasting_streams():
            _run()
    finally:
        stopping.forget(before)


def _run() -> None:
    try:
        app()
    except BenchError as error:
        print(f"robustbench_med: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except stopping.Stopped as stopped:
        stopping.kill_children()
        stopping.print_stopped()
        raise SystemExit(stopped.code) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)
        message = f"expected names of files and folders of at most 255 bytes, got {name[:40]!r}..."
        print(f"robustbench_med: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            stopping.kill_children()
            stopping.print_stopped()
        raise
