"""Subject: what the Python face was handed, as the names and values a plan is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from robustbench_med import registry
from robustbench_med.bench.plan import Broken, Planned, plan
from robustbench_med.bench.suite import Suite
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError, SpecError, VictimError
from robustbench_med.models.load import Loaded, load_victim, of_module
from robustbench_med.models.sliding import bare
from robustbench_med.models.weights import fingerprint
from robustbench_med.types import Batch, Images, Output
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
        """Return the victim's output for images in [0,1]."""
        return self.victim(x)


Subject = str | Path | nn.Module | Model  # what a function of the face takes for a model


def dataset_of(data: str | Path | Dataset, *, folder: Path | None = None) -> tuple[str, Dataset]:
    """Return a dataset and the name that records call it by.

    Raises:
        UnknownNameError, DataError, ChecksumError: as `load_dataset`.
    """
    if isinstance(data, Dataset):
        return data.card.name, data
    return str(data), load_dataset(str(data), data=folder)


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


def cases_of(
    suite: Suite, dataset: Dataset, own: Loaded | None, *, folder: Path | None = None
) -> list[Planned]:
    """Return the cases of a suite on one dataset and one victim.

    Raises:
        BenchError: whatever keeps one of them from running.
    """
    name = suite.grids[0].datasets[0]
    victims = {} if own is None else {own.card.name: own}
    planned, broken = plan(suite, data=folder, datasets={name: dataset}, victims=victims)
    _refuse(broken)
    return planned


def _refuse(broken: list[Broken]) -> None:
    for one in broken:
        raise one.error


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


def as_dataset(batch: Batch, model: Subject) -> Dataset:
    """Return a batch as a dataset whose test split it is.

    Raises:
        SpecError: a model by a spec of one's own: nothing says how many classes there are.
    """
    card = _card_of(batch, model)
    images = batch.x.cpu().numpy()
    images = images[:, 0] if card.channels == 1 else np.moveaxis(images, 1, -1).copy()
    kind = np.int16 if card.task == "segmentation" else np.int64
    labels: NDArray[Any] = batch.y.cpu().numpy().astype(kind)
    arrays = Arrays(
        images.astype(np.float32),
        labels,
        np.asarray(batch.ids, dtype=np.str_),
        None if batch.patients is None else np.asarray(batch.patients, dtype=np.str_),
    )

    def read(split: SplitName) -> Arrays:
        if split != "test":
            raise DataError(f"{card.name} ({split}): expected a split, got a batch alone")
        return arrays

    return Dataset(card, read)


def _card_of(batch: Batch, model: Subject) -> DatasetCard:
    if isinstance(model, Model):
        model = model.name if model.name in registry.load("models") else model
    if isinstance(model, str | Path):
        if registry.is_own(str(model)):
            raise SpecError(
                f"expected a dataset or a loaded model with a batch, got {model}: pass "
                "load_model(..., dataset=...)"
            )
        card: ModelCard = registry.find("models", str(model))
        found: DatasetCard = registry.find("datasets", card.dataset)
        return found
    size = tuple(batch.x.shape[2:])
    masks = batch.y.ndim > 1 and tuple(batch.y.shape[1:]) == size
    return DatasetCard(
        name="batch",
        title="A batch",
        modality="not stated",
        task="segmentation" if masks else "multi_label" if batch.y.ndim > 1 else "single_label",
        classes=tuple(f"class {i}" for i in range(max(_outputs(model, batch), 2))),
        channels=batch.x.shape[1],
        size=size,
        bit_depth=16,
    )


def _outputs(model: nn.Module | Model, batch: Batch) -> int:
    victim = model.victim if isinstance(model, Model) else _as_victim(model, batch)
    with frozen(victim.module):
        parameter = next(victim.module.parameters(), batch.x)
        return int(victim.logits(batch.x[:2].to(parameter.device)).shape[1])


def _as_victim(module: nn.Module, batch: Batch) -> Victim:
    return Victim(module, InputContract(batch.x.shape[1], tuple(batch.x.shape[2:])))
