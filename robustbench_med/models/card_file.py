"""Read the card of a trained model by its path, as `train` writes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from robustbench_med import user_code
from robustbench_med.cards import DatasetCard, ModelCard, TrainedOn
from robustbench_med.errors import ChecksumError, VictimError
from robustbench_med.paths import check_name
from robustbench_med.spec import Spec, parse

ENDING = ".json"


def is_card_file(name: str) -> bool:
    """Return whether the text of a victim is the path of a card, with or without steps before it.

    >>> is_card_file("out/card.json(preprocess='resize(64, 64)')"), is_card_file("chest_vgg")
    (True, False)
    """
    return name.partition("(")[0].strip().endswith(ENDING)


def read_card(name: str) -> tuple[ModelCard, Path]:
    """Return the card at a path, and its folder, which holds the weights.

    Raises:
        VictimError: there is no such file, it is no card, or its weights are not beside it.
    """
    path = Path(name).expanduser()
    if not check_name(str(path)).is_file():
        raise VictimError(f"expected the card of a trained model at {path}, got no such file")
    try:
        card = ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise VictimError(
            f"{path}: expected the card of a model, as `train` writes it, got: {first}"
        ) from None
    if not card.weights or Path(card.weights).name != card.weights:
        raise VictimError(
            f"{path}: expected a card with a weights file beside it, got {card.weights!r}"
        )
    return card, path.parent


def fits_of(data: DatasetCard) -> TrainedOn:
    """Return what a model that is trained on such data states about them."""
    fields = {name: getattr(data, name) for name in TrainedOn.model_fields}
    return TrainedOn.model_validate(fields)


def check_fits(card: ModelCard, fits: TrainedOn, data: DatasetCard, *, resized: bool) -> None:
    """Raise VictimError unless data are like those that a model was trained on.

    Args:
        card: the card of the model.
        fits: what the model states about its data.
        data: the data.
        resized: whether a person states the steps between the images and the network; then only
            the meaning of the outputs is compared.
    """
    for what in ("task", "classes") if resized else TrainedOn.model_fields:
        expected, got = getattr(fits, what), getattr(data, what)
        if what == "size" and data.sizes_differ:
            got = "several sizes"
        if expected != got:
            raise VictimError(
                f"{card.name}: expected {what.replace('_', ' ')} {expected}, as in its training, "
                f"got {got} of {data.name}"
            )


def placed_builder(card: ModelCard, folder: Path) -> Spec:
    """Return the builder of a card, with the path of its Python file if it has one.

    The path in a card is relative to the card's folder.

    Raises:
        ChecksumError: the file, or a module beside it that it imports, is not that of the card.
    """
    builder = parse(card.builder)
    parts = user_code.split(builder.name)
    if parts is None:
        return builder
    name = f"{folder / parts[0]}:{parts[1]}"
    if card.code and user_code.load(name).sha256 != card.code:
        raise ChecksumError(
            f"{parts[0]}: expected the code that {card.name} was trained with, got other: restore "
            "it or train again"
        )
    return Spec(name, builder.parameters)
