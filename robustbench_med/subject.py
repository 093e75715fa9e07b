"""Subject: what the Python face was handed, as the names and values a plan is made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import nn

from robustbench_med import registry
from robustbench_med.bench.runner import device_of
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models.load import Loaded, check_name, load_victim, of_module, tell
from robustbench_med.models.sliding import bare
from robustbench_med.models.user_factory import identity
from robustbench_med.models.weights import fingerprint
from robustbench_med.types import Images, Output
from robustbench_med.victim import InputContract, Victim, frozen


@dataclass(frozen=True)
class Model:
    """A loaded model: a victim with its name and card.

    Attributes:
        name: of a card, or the spec it was loaded by; "module:..." where it was handed in.
        card: what is known of it.
        sha256: hash of everything that makes its answers.
        victim: takes images in [0,1], returns an Output; behind the defense where there is one. It
            decides by argmax: the operating point is chosen where a model is evaluated.
        guide: the differentiable view that an adaptive attacker climbs; None = the victim itself.
        defense: spec of what wraps it, all parameters stated.
        plain: the victim without its defense.
    """

    name: str
    card: ModelCard
    sha256: str
    victim: Victim
    guide: Victim | None = None
    defense: str = "none"
    plain: Victim | None = None

    def __call__(self, x: Images) -> Output:
        """Return the victim's output for images in [0,1], in eval mode."""
        with frozen(self.victim.module):
            return self.victim(x)


if TYPE_CHECKING:
    Data = str | Path | Dataset
else:  # load_dataset refuses what is none of them, in one line
    Data = Any
Subject = str | Path | nn.Module | Model  # what a function of the face takes for a model
P = ParamSpec("P")
R = TypeVar("R")
_WANTED = (
    "expected a model: a name or spec, a torch nn.Module, or what load_model or defend returned"
)


def face(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of the face that computes as on the command line, wherever it is called.

    Inside `torch.inference_mode` or `no_grad` nothing has a gradient, inside `autocast` nothing is
    computed in full precision, and another default type or device is not the images'.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if "model" in kwargs or args:
            check_model(kwargs.get("model", args[0] if args else None))
        with as_usual():
            return function(*args, **kwargs)

    return called


@contextmanager
def as_usual() -> Iterator[None]:
    """Compute as on the command line, see `face`."""
    kind, other = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.device("cpu") if other else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(kind)


def check_model(model: object) -> None:
    """Raise unless a value can stand for a model; the message says what to hand in instead.

    Raises:
        VictimError: it cannot.
    """
    if isinstance(model, nn.Module | Model):
        return
    if isinstance(model, str | Path):
        check_name(str(model))
        return
    got, way = type(model).__name__, ""
    if model is None:
        got = "None"
    elif isinstance(model, type):
        got = f"the class {model.__name__}"
        way = f": make one of it, {model.__name__}(...)" if issubclass(model, nn.Module) else ""
    elif isinstance(model, Victim):
        way = ": hand in its module, with contract=... in load_model"
    elif isinstance(model, Mapping):
        tensors = any(isinstance(one, torch.Tensor) for one in model.values())
        got = "a state dict" if tensors else "a dict"
        way = ": build the network, network.load_state_dict(...), and hand in the network"
    elif inspect.isroutine(model) or isinstance(model, functools.partial):
        got = f"the function {getattr(model, '__name__', 'partial')}"
        way = (
            ": hand in the module that it returns, or, where it maps images to logits itself, an "
            "nn.Module whose forward calls it"
        )
    elif callable(model):
        way = ": wrap it in an nn.Module whose forward calls it"
    elif isinstance(model, list | tuple | set):
        way = ": one at a time"
    raise VictimError(f"{_WANTED}, got {got}{way}")


def victim_of(
    model: Subject,
    card: DatasetCard,
    *,
    name: str | None = None,
    **stated: Any,  # noqa: ANN401 - each is checked
) -> tuple[str, Loaded | None]:
    """Return a victim's name, and the victim itself where no name can load it.

    Args:
        model: see Subject.
        card: of the dataset.
        name: what records call a module.
        stated: of a module: mean, std, returns, output, contract; None is not stated.

    Raises:
        SpecError: a name or statistics for what has them by itself.
        VictimError: a module does not fit the data; or a loaded model's weights were
            changed since.
    """
    if isinstance(model, nn.Module):
        own = of_module(model, card, name=name, **stated)
        return own.card.name, own
    extra = [key for key, value in {"name": name, **stated}.items() if value is not None]
    if extra:
        way = ""
        if isinstance(model, str | Path) and registry.is_own(str(model)) and extra[0] != "name":
            way = f': write it into the spec, "...({extra[0]}=...)"'
        raise SpecError(
            f"expected {' and '.join(extra)} with a torch module alone, got it with "
            f"{model.name if isinstance(model, Model) else model}{way}"
        )
    if isinstance(model, str | Path):
        return str(model), None
    plain = model.plain or model.victim
    if model.name.startswith("module:"):
        return model.name, _again(model, plain, card)
    there = load_victim(model.name, card).victim.module
    if fingerprint(bare(there)) != fingerprint(bare(plain.module)):
        raise VictimError(
            f"{model.name}: expected the weights it was loaded with, got others: hand in the "
            "module itself"
        )
    return model.name, None


def _again(model: Model, plain: Victim, card: DatasetCard) -> Loaded:
    """Return a module that was loaded before, read as it was then where the data is alike."""
    title = model.name.removeprefix("module:")
    contract = plain.contract
    fits = (contract.channels, contract.size) == (card.channels, card.size)
    if not fits or model.card.dataset != card.name or identity(plain.module) != model.card.sha256:
        return of_module(plain.module, card, name=title, contract=contract)
    tell(model.card)
    device = next((one.device for one in plain.module.parameters()), None)
    bare_victim = Victim(plain.module, contract, chunk=plain.chunk, reading=plain.reading)
    x = torch.zeros(2, card.channels, *card.size, device=device)
    bare_victim.check(x, card.outputs, masks=card.task == "segmentation")
    return Loaded(bare_victim, model.card, model.sha256)


@contextmanager
def in_place(model: Subject) -> Iterator[None]:
    """Bring a module that was handed in back to the device it is on."""
    module = model if isinstance(model, nn.Module) else None
    if isinstance(model, Model):
        module = (model.plain or model.victim).module
    first = None if module is None else next(module.parameters(), None)
    device = None if first is None else first.device
    try:
        yield
    finally:
        if module is not None and device is not None:
            module.to(device)


def named(data: Data, *, folder: str | Path | None = None) -> tuple[str, Dataset]:
    """Return a dataset and the name that records call it by.

    Raises:
        UnknownNameError, DataError, ChecksumError: as `load_dataset`.
    """
    if isinstance(data, Dataset):
        return data.card.name, data
    return str(data), load_dataset(data, data=folder)


@face
def load_model(
    model: Subject,
    *,
    dataset: Data | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, a place, or several
    contract: InputContract | None = None,
    device: str | None = None,
) -> Model:
    """Return a model ready for images in [0,1].

    Args:
        model: a name that `list models` prints, a spec as `--victim` takes it
            ("timm:resnet18(weights='w.safetensors')", "model.py:make(width=8)", which executes that
            file), or a torch module.
        dataset: what it is for: a name, an `.npz` file or a Dataset; says channels, size and
            classes of a model of one's own. A shipped model has its own.
        folder: with the files of named datasets.
        name: what records call a module; its class unless given.
        mean: what a module is normalised with, one number or one a channel, in [0,1] units; unless
            given it is shown the images as they are.
        std: likewise.
        returns: "logits" or "probabilities" of a module; None: the bench looks, and says what it
            took its outputs for.
        output: which of several outputs of a module is its answer: a key, an attribute or a place.
        contract: of a module, in place of the one made of all these.
        device: "cpu", "cuda", "cuda:1", or "auto"; None = the CPU, and a module stays where it is.

    Raises:
        UnknownNameError, VictimError, ChecksumError, DataError: there is none, or it does not fit.
        SpecError: a model of one's own without a dataset.
    """
    if isinstance(model, Model):
        raise SpecError(
            f"expected a name, a spec or a torch module, got {model.name}, loaded before"
        )
    shipped = isinstance(model, str) and not registry.is_own(model)
    if shipped and dataset is None:
        card = registry.find("datasets", registry.find("models", str(model)).dataset)
    elif dataset is None:
        raise SpecError(
            "expected dataset=... with a model of your own, got none: it says channels, size and "
            "classes"
        )
    else:
        card = named(dataset, folder=folder)[1].card
    stated = {"mean": mean, "std": std, "returns": returns, "output": output, "contract": contract}
    _, loaded = victim_of(model, card, name=name, **stated)
    if loaded is None:
        loaded = load_victim(str(model), card)
        tell(loaded.card)
        loaded.victim.module.eval()
    if device is not None:
        loaded.victim.module.to(device_of(device))
    return Model(loaded.card.name, loaded.card, loaded.sha256, loaded.victim)
