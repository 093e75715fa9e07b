"""The command `dataset build`: the file of a named dataset from its official download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Build the file of a named dataset.", rich_markup_mode=None
)


def register(parent: typer.Typer) -> None:
    """Add the command to the command line."""
    parent.add_typer(app, name="dataset")


@app.callback()
def dataset() -> None:
    """Build the file of a named dataset."""


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="The dataset; `list datasets` prints them.")],
    source: Annotated[
        Path, typer.Option("--from", help="The folder of its official download, unpacked.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the new file; by default the cache folder."),
    ] = None,
) -> None:
    """Write the .npz file of a named dataset from its official download.

    It is written only if its SHA-256 is the one in the dataset's card.
    """
    from robustbench_med.bench.store import check_writable
    from robustbench_med.datasets import builds
    from robustbench_med.datasets.cache import cache_dir

    home = cache_dir() if out is None else out
    check_writable(home, option="--out")
    typer.echo(f"{builds.build(name, source, home)}: its SHA-256 is the one in the card")
