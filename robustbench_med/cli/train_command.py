"""The command `train`: reproduce a shipped model from the recipe in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_med.cli import choices


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    card: Annotated[str, typer.Argument(help="A shipped model; `list models` prints them.")],
    data: choices.Data = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder for the weights and the card: by default results/local/zoo, or the "
            "cache folder for a model whose weights are not shipped.",
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            "--defense",
            help="A defense to train with, e.g. 'pgd_at(eps=4/255)'; see `list defenses`.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="The number of epochs, in place of the recipe's."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="A shipped victim whose weights the training starts from."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            "--ema", help="Decay of the moving average of the weights, e.g. 0.95; 0 = off."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many epochs without a better validation."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="float32, or bfloat16 for mixed precision.")
    ] = None,
) -> None:
    """Train a shipped model by the recipe in its card, and write weights and card.

    The training is seeded. When it is stopped and the command runs again, it goes on from its last
    epoch and ends with the same weights.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from robustbench_med import registry
    from robustbench_med.bench.store import check_writable
    from robustbench_med.cards import ModelCard
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.models.trained_here import home_of
    from robustbench_med.training import train as training

    console = Console()
    model_card: ModelCard = registry.find("models", card)
    recipe = model_card.recipe
    if defense is not None:
        model_card = training.defended(model_card, defense)
    changes = {"epochs": epochs, "start": start, "ema": ema}
    changes |= {"patience": patience, "precision": precision}
    changes = {key: value for key, value in changes.items() if value is not None}
    model_card = training.adjusted(model_card, changes)
    training.check(model_card)
    if out is None:
        unchanged = model_card.trained_here and model_card.recipe == recipe
        out = home_of(model_card) if unchanged else Path("results/local/zoo")
    check_writable(out, option="--out")
    dataset = load_dataset(model_card.dataset, data=data)
    bar = Progress(
        TextColumn(f"{model_card.name} on {model_card.dataset}", markup=False),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %, time left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        trained = training.train(
            model_card,
            dataset,
            out,
            progress=lambda fraction: bar.update(task, completed=fraction),
            log=lambda line: bar.console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    if trained.measured is None:
        raise RuntimeError("train returned a card without measurements")
    name, value = trained.measured.headline
    console.print(
        f"{out / trained.weights}: {name} {value:.3f}, "
        f"sha256 {trained.sha256[:12]}...{_compare(trained.sha256, model_card.sha256)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _compare(trained: str, shipped: str) -> str:
    """Return whether the hash of the trained weights is that of the shipped ones."""
    if not shipped:
        return ""
    return (
        ", the same as the shipped weights" if trained == shipped else ", not the shipped weights"
    )
