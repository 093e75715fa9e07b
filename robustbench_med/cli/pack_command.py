"""The command `pack`: put the records of a folder into two files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(pack)


def pack(
    folder: Annotated[Path, typer.Argument(help="The folder of one suite's records.")],
) -> None:
    """Pack the records of a folder into two files, which all commands read like a folder.

    Pictures and saved images stay where they are. A later run writes its records beside the two
    files; run `pack` again to add them.
    """
    from robustbench_med.bench.pack import pack as pack_records

    result = pack_records(folder)
    size = sum(path.stat().st_size for path in result.files)
    names = " and ".join(path.name for path in result.files)
    typer.echo(f"packed {result.records} records in {folder}: {names}, {size / 1e6:.2f} MB")
