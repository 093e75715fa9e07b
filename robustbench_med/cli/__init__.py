"""The command line. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import sys

import typer

from robustbench_med.cli import (
    inspect_commands,
    report_command,
    run_commands,
    train_command,
    verify_command,
)
from robustbench_med.errors import BenchError

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
    inspect_commands,
    train_command,
):
    commands.register(app)


INTERRUPTED = 130

INTERRUPTED = 130


def main() -> None:
    """Run the command line; a person's mistake costs one line and exit code 2."""
    try:
        app()
    except BenchError as error:
        print(f"robustbench_med: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's answer to Ctrl-C
            kept = "stopped; finished cases are kept, run again to go on"
            print(f"robustbench_med: {kept}", file=sys.stderr)
        raise
