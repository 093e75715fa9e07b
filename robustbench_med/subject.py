"""Subject: what the Python face was handed, as the names and values a plan is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from robustbench_med import registry
from robustbench_med.bench.runner import device_of
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models.load import Loaded, load_victim, of_module
from robustbench_med.models.sliding import bare
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


def victim_of(
    model: Subject,
    card: DatasetCard,
    *,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[str, Loaded | None]:
    """Return a victim's name, and the victim itself where no name can load it.

    Raises:
        SpecError: a name or statistics for what has them by itself.
        VictimError: a module does not fit the data, or a loaded model's weights were changed since.
    """
    if isinstance(model, nn.Module):
        own = of_module(model, card, name=name, mean=mean, std=std)
        return own.card.name, own
    if name is not None or mean is not None or std is not None:
        raise SpecError(
            "expected name, mean and std with a torch module alone, got them with "
            f"{model.name if isinstance(model, Model) else model}"
        )
    if isinstance(model, str | Path):
        return str(model), None
    plain = model.plain or model.victim
    if model.name.startswith("module:"):
        title = model.name.removeprefix("module:")
        own = of_module(plain.module, card, name=title, contract=plain.contract)
        return own.card.name, own
    there = load_victim(model.name, card).victim.module
    if fingerprint(bare(there)) != fingerprint(bare(plain.module)):
        raise VictimError(
            f"{model.name}: expected the weights it was loaded with, got others: hand in the "
            "module itself"
        )
    return model.name, None


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


def load_model(
    model: str | Path | nn.Module,
    *,
    dataset: Data | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
        mean: what a module is normalised with, a number a channel, in [0,1] units; unless given it
            is shown the images as they are.
        std: likewise.
        contract: of a module, in place of the one made of `dataset`, `mean` and `std`.
        device: "cpu", "cuda", "cuda:1", or "auto"; None = the CPU, and a module stays where it is.

    Raises:
        UnknownNameError, VictimError, ChecksumError, DataError: there is none, or it does not fit.
        SpecError: a model of one's own without a dataset.
    """
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
    if isinstance(model, nn.Module):
        loaded = of_module(model, card, name=name, mean=mean, std=std, contract=contract)
    elif contract is not None:
        raise SpecError(f"expected a contract with a torch module alone, got one with {model}")
    else:
        victim_of(model, card, name=name, mean=mean, std=std)  # refuses what is a module's alone
        loaded = load_victim(str(model), card)
        loaded.victim.module.eval()
    if device is not None:
        loaded.victim.module.to(device_of(device))
    return Model(loaded.card.name, loaded.card, loaded.sha256, loaded.victim)
