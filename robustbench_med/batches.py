"""Check the batches that a script passes, and make datasets of one split from them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.cards import DatasetCard, ModelCard, Task
from robustbench_med.contract import contract_of
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.labels import integers, one_hot_rows
from robustbench_med.datasets.masks import of_planes
from robustbench_med.errors import DataError, MissingSplitError, SpecError
from robustbench_med.model_handle import ModelHandle, ModelLike
from robustbench_med.models import user_factory
from robustbench_med.models.options import read_steps
from robustbench_med.models.probing import Expected, probe
from robustbench_med.types import Batch, images_at_once
from robustbench_med.victim import Victim, frozen

_log = logging.getLogger(__name__)
_WHERE = "batch"
_COLOURS = (1, 3, 4)


def is_batch(data: object) -> bool:
    """Whether data is a Batch, or a pair of arrays that can only be images and their labels."""
    if isinstance(data, Batch):
        return True
    return isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array, data))


def checked(data: Batch | tuple[Any, Any] | list[Any], *, task: Task | None = None) -> Batch:
    """Return a batch whose images are float32 and whose labels are int64, as its contract says.

    Images may be tensors or numpy arrays of any float type, may require gradients, or may be uint8
    grey levels. Labels may have the shape `(b, 1)`, labels and masks may be whole floats, and masks
    may be one-hot. `Dataset.arrays` checks the values, as for any dataset.

    Args:
        data: the batch, or images and labels, which get the ids "batch-000000", ...
        task: the task of the model's data, if it is known.

    Raises:
        DataError: the data is no batch of images with labels, or is ambiguous.
    """
    if not isinstance(data, Batch):
        count = len(data[0]) if np.ndim(data[0]) else 0
        names = np.array([f"batch-{row:06d}" for row in range(count)], dtype=np.str_)
        data = Batch(data[0], data[1], names)
    x = _images(data.x)
    y = _truth(data.y, x, task)
    ids = _names(data.ids, len(x), "ids")
    if len(np.unique(ids)) != len(x):
        raise DataError(
            f"{_WHERE}: expected one id per image, got {len(np.unique(ids))} for {len(x)}"
        )
    patients = None if data.patients is None else _names(data.patients, len(x), "patients")
    return Batch(x, y, ids, patients)


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _array(value: object, what: str) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray | list | tuple):
        try:
            return np.asarray(value)
        except ValueError:
            pass  # rows of different lengths
    raise DataError(
        f"{_WHERE}: expected {what} as a tensor or an array, got {type(value).__name__}"
    )


def _images(value: object) -> Tensor:
    images = _array(value, "images x")
    shape = tuple(images.shape)
    if images.ndim not in (4, 5) or 0 in shape[1:]:
        raise DataError(
            f"{_WHERE}: expected images of shape (b, c, h, w) or (b, c, d, h, w), got {shape}; "
            "pass one image as x[None], and images of one channel as x[:, None]"
        )
    if shape[0] == 0:
        raise DataError(f"{_WHERE}: expected at least one image, got none")
    if images.ndim == 4 and shape[-1] in _COLOURS and shape[1] not in _COLOURS:
        raise DataError(
            f"{_WHERE}: expected channels first, (b, c, h, w), got {shape}; move them with "
            "x.movedim(-1, 1)"
        )
    if images.dtype == np.uint8:
        if images.max() <= 1:
            raise DataError(
                f"{_WHERE}: expected uint8 grey levels in 0..255, got only 0 and 1, as happens if "
                "[0,1] floats are cast to uint8; pass them as float32"
            )
        _log.warning("%s: uint8 images are read as grey levels 0..255", _WHERE)
        return torch.from_numpy(images.astype(np.float32) / 255)
    if images.dtype.kind != "f":
        raise DataError(
            f"{_WHERE}: expected float images in [0,1], got {images.dtype}; rescale them all by "
            "the same range"
        )
    with np.errstate(over="ignore"):  # overflow becomes Inf, which is refused later
        return torch.from_numpy(np.array(images, dtype=np.float32))


def _truth(value: object, x: Tensor, task: Task | None) -> Tensor:
    stored, size, n = _array(value, "labels y"), tuple(x.shape[2:]), len(x)
    if stored.ndim == 0 or len(stored) != n:
        got = "a single number" if stored.ndim == 0 else f"{len(stored)} for {n} images"
        raise DataError(f"{_WHERE}: expected one label or mask per image, got {got}")
    if stored.ndim > 2 and tuple(stored.shape[1:]) != (1, 1):
        ids, note = of_planes(stored, size, f"{_WHERE}: y", tuple(x.shape[1:]))
        if note is not None:
            _log.warning("%s", note)
        return torch.from_numpy(ids.astype(np.int64))
    ids = integers(stored, f"{_WHERE}: y")
    if ids.ndim > 1 and ids[0].size == 1:
        ids = ids.reshape(n)
    if ids.ndim == 2 and task != "multi_label" and one_hot_rows(ids):
        if task != "single_label":
            raise DataError(
                f"{_WHERE}: expected class ids (b,) or findings (b, k), got rows that all sum to "
                "one, which may be either; pass one-hot labels as y.argmax(1), and findings as "
                'an .npz file whose info states "task": "multi-label"'
            )
        _log.warning("%s: one-hot labels are read as class ids", _WHERE)
        ids = np.where((ids < 0).all(1), -1, ids.argmax(1))
    return torch.from_numpy(ids.copy())


def _names(value: object, n: int, what: str) -> NDArray[np.character]:
    names = _array(value, what)
    if names.shape not in ((n,), (n, 1)) or names.dtype.kind not in "USOiu":
        raise DataError(
            f"{_WHERE}: expected {what} as {n} names, one per image, got {names.dtype} of shape "
            f"{tuple(names.shape)}"
        )
    return names.reshape(n).astype(np.str_)


def dataset_of(batch: Batch, model: ModelLike, **options: Any) -> Dataset:  # noqa: ANN401
    """Return a dataset whose test split is the batch.

    Raises:
        SpecError: the model is a spec of the user's own, so that the number of classes is unknown.
    """
    card = _card_of(batch, model, options)
    images = batch.x.detach().cpu().numpy()
    images = images[:, 0] if card.channels == 1 else np.moveaxis(images, 1, -1).copy()
    kind = np.int16 if card.task == "segmentation" else np.int64
    labels: NDArray[Any] = batch.y.detach().cpu().numpy().astype(kind)
    arrays = Arrays(
        images.astype(np.float32),
        labels,
        np.asarray(batch.ids, dtype=np.str_),
        None if batch.patients is None else np.asarray(batch.patients, dtype=np.str_),
    )

    def read(split: SplitName) -> Arrays:
        if split != "test":
            raise MissingSplitError(f"{card.name} ({split}): expected a split, got only a batch")
        return arrays

    return Dataset(card, read)


def task_of(model: ModelLike) -> Task | None:
    """Return the task of the data of a shipped model; None for any other model."""
    name = model.name if isinstance(model, ModelHandle) else model
    cards = registry.load("models")
    if not isinstance(name, str) or name not in cards:
        return None
    card: DatasetCard = registry.find("datasets", cards[name].dataset)
    return card.task


def _card_of(batch: Batch, model: ModelLike, options: dict[str, Any]) -> DatasetCard:
    if isinstance(model, ModelHandle):
        model = model.name if model.name in registry.names("models") else model
    if isinstance(model, str | Path):
        if registry.is_own(str(model)):
            raise SpecError(
                f"expected a dataset or a loaded model with a batch, got {model}: pass "
                "load_model(..., dataset=...)"
            )
        card: ModelCard = registry.find("models", str(model))
        dataset_card: DatasetCard = registry.find("datasets", card.dataset)
        return dataset_card
    size = tuple(batch.x.shape[2:])
    masks = batch.y.ndim > 1 and tuple(batch.y.shape[1:]) == size
    described = DatasetCard(
        name="batch",
        title="A batch",
        modality="not stated",
        task="segmentation" if masks else "multi_label" if batch.y.ndim > 1 else "single_label",
        classes=(),
        channels=batch.x.shape[1],
        size=size,
        bit_depth=16,
        native_range="float 0..1",
    )
    k = max(_output_width(model, batch, described, options), 2)
    return described.model_copy(update={"classes": tuple(f"class {i}" for i in range(k))})


def _output_width(
    model: nn.Module | ModelHandle, batch: Batch, card: DatasetCard, options: dict[str, Any]
) -> int:
    """Return the number of logits that a model has for images like those of a batch."""
    if not isinstance(model, ModelHandle):
        steps = read_steps(options, card)
        options = {key: value for key, value in options.items() if key != "preprocess"}
        contract = contract_of(card.channels, card.size, options, preprocess=steps)
        module = user_factory.with_gradients(model)
        victim = Victim(module, contract, chunk=images_at_once(contract.size))
        findings, masks = card.task == "multi_label", card.task == "segmentation"
        expected = Expected((batch.y.shape[1],) if findings else (), masks, findings)
        return probe(victim.network, expected).reading.width or 0
    victim = model.victim
    with frozen(victim.module):
        parameter = next(victim.module.parameters(), batch.x)
        return int(victim.logits(batch.x[:2].to(parameter.device)).shape[1])
