"""Parse the text of a victim: a model of the zoo, of a library, or of the user; see load.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from robustbench_med import registry, spec
from robustbench_med.cards import ModelCard
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models import user_factory
from robustbench_med.models.card_file import ENDING, is_card_file, read_card
from robustbench_med.models.deployed.source import Deployed, deployed_of

_FILES = {
    ending: "weights alone have no architecture; use \"timm:NAME(weights='FILE.safetensors')\" or "
    "\"FILE.py:FACTORY(weights='FILE.safetensors')\""
    for ending in (".safetensors", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
} | {
    ending: "convert it to PyTorch or to ONNX (FILE.onnx)"
    for ending in (".h5", ".keras", ".tflite", ".pb", ".joblib")
}


def check_name(name: str) -> None:
    """Raise VictimError if the name is that of a file that is not a model."""
    ending = Path(name).suffix.lower()
    if not registry.is_own(name) and "/" in name and Path(name).is_dir():
        raise VictimError(
            f"expected a model's name or spec, got the folder {name!r}: hf:FOLDER reads one of "
            "transformers, bundle:FOLDER one of MONAI, FOLDER/NAME.json a card that train wrote"
        )
    if not registry.is_own(name) and ending in _FILES:
        raise VictimError(f"expected a model's name or spec, got {name!r}: {_FILES[ending]}")


class ModelSource(NamedTuple):
    """The model that the text of a victim names: parsed once, and loaded as often as needed.

    Attributes:
        name: the text.
        card: the card of the zoo; None for a user's own model.
        factory: the Python file and function that make the model, if the text names one.
        builder: a library's model with its parameters, if the text names one.
        entry: a model that a package or a script registered as a function.
        deployed: a model in the form in which it is deployed, if the text names one.
        preprocess: the steps before a model of the zoo, if the text states them.
        folder: the folder of a card that the text names by its path; None for one of the zoo.
    """

    name: str
    card: ModelCard | None = None
    factory: user_factory.Factory | None = None
    builder: spec.Spec | None = None
    entry: registry.Entry | None = None
    deployed: Deployed | None = None
    preprocess: str = ""
    folder: Path | None = None


def resolve_model(name: str) -> ModelSource:
    """Return the model that the text of a victim names.

    Raises:
        UnknownNameError: there is no such card.
        SpecError, VictimError: the text is not a spec, or names a file instead of a model.
    """
    if not registry.is_own(name):
        check_name(name)
        entry = registry.entry_of("models", name)
        if entry is not None and entry.item is not None:
            return ModelSource(name, entry=entry)
        return ModelSource(name, card=registry.find("models", name))
    if name.endswith(ENDING):
        card, folder = read_card(name)
        return ModelSource(name, card=card, folder=folder)
    head, bracket, _ = name.partition("(")
    shipped = head.strip() in registry.names("models")
    if bracket and (shipped or is_card_file(name)):
        source = resolve_model(head.strip())
        return source._replace(name=name, preprocess=_only_preprocess(name))
    deployed = deployed_of(name)
    if deployed is not None:
        return ModelSource(name, deployed=deployed)
    factory = user_factory.factory_of(name)
    if factory is not None:
        return ModelSource(name, factory=factory)
    return ModelSource(name, builder=spec.parse(name))


def executes_code(name: str) -> bool:
    """Return whether loading a victim executes code of a file, or sends requests to an address."""
    if is_card_file(name):
        return bool(read_card(name.partition("(")[0].strip())[0].code)
    deployed = deployed_of(name)
    if deployed is not None:
        # torch unpickles an exported file, and a stranger's record may name any address
        return deployed.kind in ("exported", "server")
    return user_factory.factory_of(name) is not None


def _only_preprocess(name: str) -> str:
    """Return the steps that a text states with a model of the zoo.

    Raises:
        SpecError: it states anything else.
    """
    parameters = spec.parse(name).parameters
    if set(parameters) != {"preprocess"}:
        raise SpecError(f"expected NAME or NAME(preprocess='...') of a shipped model, got {name}")
    return str(parameters["preprocess"])
