"""ModelHandle: a loaded model with its name and card, and what the Python API takes for a model."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import nn

from robustbench_med import registry
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.python_data import MapStyle
from robustbench_med.devices import device_of
from robustbench_med.errors import MissingSplitError, SpecError, VictimError
from robustbench_med.models.card_file import is_card_file
from robustbench_med.models.load import Loaded, load_victim, log_notes, of_module
from robustbench_med.models.preprocess import rebound, with_preprocess
from robustbench_med.models.sliding import bare
from robustbench_med.models.source import check_name
from robustbench_med.models.user_factory import identity
from robustbench_med.models.weights import fingerprint
from robustbench_med.types import Images, Output
from robustbench_med.victim import InputContract, Victim, frozen


@dataclass(frozen=True)
class ModelHandle:
    """A loaded model: a victim with its name and card.

    Attributes:
        name: the name of its card, or the spec it was loaded by; "module:..." for a torch module.
        card: what is known about the model.
        sha256: hash of everything that determines its outputs.
        victim: maps images in [0,1] to an Output; it includes the defense where there is one. It
            decides by argmax: the operating point is chosen where a model is evaluated.
        guide: the differentiable view that an adaptive attacker uses; None = the victim itself.
        defense: spec of the defense around it, with all parameters stated.
        undefended: the victim without its defense.
    """

    name: str
    card: ModelCard
    sha256: str
    victim: Victim
    guide: Victim | None = None
    defense: str = "none"
    undefended: Victim | None = None

    def __call__(self, x: Images) -> Output:
        """Return the victim's output for images in [0,1], in eval mode."""
        with frozen(self.victim.module):
            return self.victim(x)


if TYPE_CHECKING:
    DataLike = str | Path | Dataset | MapStyle | Mapping[str, MapStyle]
else:  # load_dataset refuses anything else with a message of one line
    DataLike = Any
ModelLike = str | Path | nn.Module | ModelHandle
P = ParamSpec("P")
R = TypeVar("R")
_EXPECTED = (
    "expected a model: a name or spec, a torch nn.Module, or what load_model or defend returned"
)


def api_function(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of the API that checks its model and computes in torch's default modes."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "model" in kwargs or args:
            check_model(kwargs.get("model", args[0] if args else None))
        with default_modes():
            return function(*args, **kwargs)

    return call


@contextmanager
def default_modes() -> Iterator[None]:
    """Compute as the command line does, whatever modes of torch the caller has set.

    Nothing has a gradient inside `torch.inference_mode` or `no_grad`, nothing is computed in full
    precision inside `autocast`, and another default type or device does not match the images.
    """
    dtype, other_device = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.device("cpu") if other_device else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def check_model(model: object) -> None:
    """Raise unless a value can stand for a model; the message says what to pass instead.

    Raises:
        VictimError: it cannot.
    """
    if isinstance(model, nn.Module | ModelHandle):
        return
    if isinstance(model, str | Path):
        check_name(str(model))
        return
    raise VictimError(f"{_EXPECTED}, got {_describe_wrong_model(model)}")


def _describe_wrong_model(model: object) -> str:
    """Return what a value is, and how to get a model from it."""
    kind, advice = type(model).__name__, ""
    if model is None:
        kind = "None"
    elif isinstance(model, type):
        kind = f"the class {model.__name__}"
        if issubclass(model, nn.Module):
            advice = f": make an instance of it, {model.__name__}(...)"
    elif isinstance(model, Victim):
        advice = ": pass its module, with contract=... in load_model"
    elif isinstance(model, Mapping):
        tensors = any(isinstance(value, torch.Tensor) for value in model.values())
        kind = "a state dict" if tensors else "a dict"
        advice = ": build the network, network.load_state_dict(...), and pass the network"
    elif inspect.isroutine(model) or isinstance(model, functools.partial):
        kind = f"the function {getattr(model, '__name__', 'partial')}"
        advice = (
            ": pass the module that it returns, or, where it maps images to logits itself, an "
            "nn.Module whose forward calls it"
        )
    elif callable(model):
        advice = ": wrap it in an nn.Module whose forward calls it"
    elif isinstance(model, list | tuple | set):
        advice = ": pass them one at a time"
    return f"{kind}{advice}"


def resolve_model(
    model: ModelLike,
    card: DatasetCard,
    *,
    name: str | None = None,
    **options: Any,  # noqa: ANN401 - each is checked
) -> tuple[str, Loaded | None]:
    """Return a victim's name, and the victim itself where no name can load it.

    Args:
        model: a name, a spec, a torch module or a handle.
        card: card of the dataset.
        name: the name of a module in records.
        options: preprocess, mean, std, returns, output or contract of a torch module; None is not
            stated.

    Raises:
        SpecError: a name or options were passed for a model that has them by itself.
        VictimError: a module does not fit the data, or the weights of a loaded model have changed.
    """
    if isinstance(model, nn.Module):
        loaded = of_module(model, card, name=name, **options)
        return loaded.card.name, loaded
    extra = [key for key, value in {"name": name, **options}.items() if value is not None]
    if extra:
        advice = ""
        if isinstance(model, str | Path) and registry.is_own(str(model)) and extra[0] != "name":
            advice = f': write it into the spec, "...({extra[0]}=...)"'
        raise SpecError(
            f"expected {' and '.join(extra)} with a torch module alone, got it with "
            f"{model.name if isinstance(model, ModelHandle) else model}{advice}"
        )
    if isinstance(model, str | Path):
        return str(model), None
    undefended = model.undefended or model.victim
    if model.name.startswith("module:"):
        return model.name, _load_again(model, undefended, card)
    shipped = load_victim(model.name, card).victim.module
    if fingerprint(bare(shipped)) != fingerprint(bare(undefended.module)):
        raise VictimError(
            f"{model.name}: expected the weights it was loaded with, got others: pass the module "
            "itself"
        )
    return model.name, None


def join_steps(model: ModelLike, preprocess: str | None) -> tuple[ModelLike, str | None]:
    """Return a model with the steps before it in its text; a module keeps them beside it."""
    if preprocess is None or not isinstance(model, str | Path):
        return model, preprocess
    return with_preprocess(str(model), preprocess), None


def _load_again(model: ModelHandle, undefended: Victim, card: DatasetCard) -> Loaded:
    """Return the module of a handle; its outputs are read as before where the data is alike."""
    title = model.name.removeprefix("module:")
    contract = rebound(undefended.contract, card)
    fits = (contract.channels, contract.size) == (card.channels, card.size)
    unchanged = fits and identity(undefended.module) == model.card.sha256
    if not unchanged or model.card.dataset != card.name:
        return of_module(undefended.module, card, name=title, contract=contract)
    log_notes(model.card)
    device = next((parameter.device for parameter in undefended.module.parameters()), None)
    victim = Victim(undefended.module, contract, chunk=undefended.chunk, reading=undefended.reading)
    x = torch.zeros(2, card.channels, *card.size, device=device)
    victim.check(x, card.outputs, masks=card.task == "segmentation")
    return Loaded(victim, model.card, model.sha256)


@contextmanager
def restored_device(model: ModelLike) -> Iterator[None]:
    """Move a module that the caller passed back to its device afterwards."""
    module = model if isinstance(model, nn.Module) else None
    if isinstance(model, ModelHandle):
        module = (model.undefended or model.victim).module
    parameter = None if module is None else next(module.parameters(), None)
    device = None if parameter is None else parameter.device
    try:
        yield
    finally:
        if module is not None and device is not None:
            module.to(device)


def resolve_dataset(data: DataLike, *, folder: str | Path | None = None) -> tuple[str, Dataset]:
    """Return the name of a dataset in records, and the dataset.

    Raises:
        UnknownNameError, DataError, ChecksumError: as `load_dataset`.
    """
    if isinstance(data, Dataset):
        return data.card.name, data
    dataset = load_dataset(data, data=folder)
    return str(data) if isinstance(data, str | os.PathLike) else dataset.card.name, dataset


def _few_images(data: Dataset) -> Images:
    """Return a few images of the first split that has some."""
    images: Images
    for split in ("test", "val"):
        with suppress(MissingSplitError):
            images = data.few_images(split)
            return images
    images = data.few_images("train")
    return images


@api_function
def load_model(
    model: ModelLike,
    *,
    dataset: DataLike | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    preprocess: str | None = None,
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, an index, or several
    contract: InputContract | None = None,
    device: str | None = None,
) -> ModelHandle:
    """Load a model that takes images in [0,1].

    Args:
        model: a name that `list models` prints, a spec as `--victim` takes it
            ("timm:resnet18(weights='w.safetensors')", or "model.py:make(width=8)", which executes
            that file), or a torch module.
        dataset: the data the model is for: a name, an `.npz` file or a Dataset. It states the
            channels, size and classes of your own model. A shipped model has its own dataset.
        folder: the folder with the files of real datasets.
        name: the name of a module in records; by default its class.
        preprocess: the steps between a stored image and the model, e.g. "window(40, 400),
            resize(224, 224), stack(3)"; see docs/native_units.md.
        mean: the mean that a module is normalised with, one number or one per channel, in [0,1]
            units. By default the module gets the images as they are.
        std: the standard deviation, likewise.
        returns: "logits" or "probabilities" of a module. None: the bench finds out, and logs what
            it takes the outputs for.
        output: which of several outputs of a module to read: a key, an attribute or an index.
        contract: the input contract of a module, in place of `mean`, `std`, `returns` and `output`.
        device: "cpu", "cuda", "cuda:1", or "auto". None: the CPU; a module stays where it is.

    Raises:
        UnknownNameError, VictimError, ChecksumError, DataError: there is no such model, or it does
            not fit the data.
        SpecError: your own model without a dataset.
    """
    if isinstance(model, ModelHandle):
        raise SpecError(
            f"expected a name, a spec or a torch module, got {model.name}, which is loaded already"
        )
    model, preprocess = join_steps(model, preprocess)
    shipped = isinstance(model, str) and not registry.is_own(model)
    images = None
    if shipped and dataset is None:
        card = registry.find("datasets", registry.find("models", str(model)).dataset)
    elif dataset is None:
        raise SpecError(
            "expected dataset=... with a model of your own, got none: it states channels, size and "
            "classes"
        )
    else:
        data = resolve_dataset(dataset, folder=folder)[1]
        card, images = data.card, partial(_few_images, data)
    options = {"mean": mean, "std": std, "returns": returns, "output": output, "contract": contract}
    options["preprocess"] = preprocess
    _, loaded = resolve_model(model, card, name=name, **options)
    if loaded is None:
        loaded = load_victim(str(model), card, images=images)
        log_notes(loaded.card)
        loaded.victim.module.eval()
    if device is not None:
        loaded.victim.module.to(device_of(device))
    by_path = isinstance(model, str | Path) and is_card_file(str(model))
    name = str(model) if by_path else loaded.card.name
    return ModelHandle(name, loaded.card, loaded.sha256, loaded.victim)
