"""MAITE: our datasets, models, attacks and metrics as objects of its protocols, and theirs as ours.

The protocols are those of `maite.protocols.image_classification`: an image is `(c, h, w)` in [0,1],
a target is `(k,)`, one-hot or one number per finding, and a datum has an `id`. The protocols are
structural, so this module does not import maite. Masks have no such protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.api import attack
from robustbench_med.augmentation import attack_of, is_augmentation
from robustbench_med.cards import DatasetCard, Task
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError, MissingSplitError, SpecError
from robustbench_med.metrics.classification import Predictions, score
from robustbench_med.model_handle import DataLike, ModelHandle, ModelLike, load_model
from robustbench_med.objectives.decide import probabilities
from robustbench_med.stats.patients import resamples
from robustbench_med.types import Batch
from robustbench_med.victim import frozen

Floats = NDArray[np.float32]


class MaiteDataset:
    """A split of one of our datasets as a MAITE Dataset.

    Attributes:
        metadata: `id` and `index2label`.
    """

    def __init__(self, data: DataLike, split: SplitName = "test") -> None:
        self._data = _dataset_of(data)
        self._batch = self._data.batch(split, stored=True)
        card = self._data.card
        self.metadata: dict[str, Any] = {
            "id": f"{card.name}/{split}",
            "index2label": dict(enumerate(card.classes)),
        }

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: int, /) -> tuple[Floats, Floats, dict[str, Any]]:
        """Return the image `(c, h, w)` in [0,1], the target `(k,)` and the metadata of a datum."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in 0..{len(self) - 1}, got {index}")
        batch, card = self._batch, self._data.card
        y = batch.y[index].numpy()
        target = _one_hot(y, len(card.classes)) if card.task == "single_label" else y
        about: dict[str, Any] = {"id": str(batch.ids[index])}
        if batch.patients is not None:
            about["patient"] = str(batch.patients[index])
        return batch.x[index].numpy(), np.asarray(target, dtype=np.float32), about


class MaiteModel:
    """A model of ours, with its defense if it has one, as a MAITE Model.

    Attributes:
        metadata: `id` and `index2label`.
    """

    def __init__(
        self, model: ModelLike, data: DataLike, *, device: str | None = None, batch_size: int = 64
    ) -> None:
        self._card = _dataset_of(data).card
        self.handle = _handle_of(model, data, device)
        self._batch_size = batch_size
        self.metadata: dict[str, Any] = {
            "id": self.handle.name,
            "index2label": dict(enumerate(self._card.classes)),
        }

    def __call__(self, batch_input: Sequence[Any], /) -> Sequence[NDArray[np.float64]]:
        """Return the probabilities `(k,)` of each image; the decision is the largest, or 0.5."""
        images = _images(batch_input)
        parameter = next(self.handle.victim.module.parameters(), None)
        where = torch.device("cpu") if parameter is None else parameter.device
        answers = []
        with torch.no_grad(), frozen(self.handle.victim.module):
            for part in images.split(self._batch_size):
                logits = self.handle.victim(part.to(where)).logits.cpu()
                answers += list(probabilities(logits, self._card.task))
        return answers


class MaiteAttack:
    """An attack of ours on a model as a MAITE Augmentation: it returns adversarial images.

    The draws of an image depend on its `id` and the seed, so that the size of a batch changes
    nothing.

    Attributes:
        metadata: `id`.
    """

    def __init__(
        self,
        spec: str,
        model: ModelLike,
        data: DataLike,
        *,
        eps: float | str,
        norm: Any = "linf",  # noqa: ANN401 - `attack` checks it
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self._card = _dataset_of(data).card
        self._handle = _handle_of(model, data, None)
        self._options: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "device": device}
        self._spec = spec
        self.metadata: dict[str, Any] = {"id": f"{spec} at {eps} in {norm} on {self._handle.name}"}

    def __call__(
        self, batch: tuple[Sequence[Any], Sequence[Any], Sequence[Any]], /
    ) -> tuple[Sequence[Floats], Sequence[Any], Sequence[dict[str, Any]]]:
        """Return the attacked images, the targets as they were, and the metadata with `attack`."""
        images, targets, about = batch
        y = torch.from_numpy(_truth(targets, self._card))
        ids = np.array([str(datum["id"]) for datum in about])
        result = attack(self._handle, Batch(_images(images), y, ids), self._spec, **self._options)
        metadata = [{**datum, "attack": self.metadata["id"]} for datum in about]
        return list(result.z.numpy()), targets, metadata


class MaiteMetrics:
    """Our metrics of labels and findings, with 95 % intervals, as a MAITE Metric.

    `compute` returns `accuracy`, `balanced_accuracy`, `sensitivity`, `specificity`, `auc` and `f1`,
    and the ends of their intervals, `accuracy_low` and so on. Where each datum states its
    `patient`, the intervals count patients.

    Attributes:
        metadata: `id`.
    """

    def __init__(self, data: DataLike) -> None:
        self._card = _dataset_of(data).card
        self.metadata: dict[str, Any] = {"id": f"robustbench_med on {self._card.name}"}
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._scores: list[NDArray[np.float64]] = []
        self._truth: list[NDArray[np.int64]] = []
        self._patients: list[str | None] = []

    def update(
        self,
        pred_batch: Sequence[Any],
        target_batch: Sequence[Any],
        metadata_batch: Sequence[Any],
        /,
    ) -> None:
        """Add predictions `(k,)`, which are probabilities, and their targets."""
        self._scores += [np.asarray(scores, dtype=np.float64) for scores in pred_batch]
        self._truth += list(_truth(target_batch, self._card))
        self._patients += [datum.get("patient") for datum in metadata_batch]

    def compute(self) -> dict[str, Any]:
        """Return each metric and the ends of its interval.

        Raises:
            DataError: there is no prediction.
        """
        if not self._scores:
            raise DataError("expected predictions before compute(), got none")
        scores, truth = np.stack(self._scores), np.stack(self._truth)
        single = self._card.task == "single_label"
        called = scores.argmax(1) if single else (scores > 0.5).astype(np.int64)
        known = all(patient is not None for patient in self._patients)
        patients = np.array(self._patients, dtype=np.str_) if known else None
        estimates = score(
            Predictions.of(truth, called, scores, self._card),
            self._card,
            clusters=patients,
            weights=resamples(len(truth), patients),
        )
        return {
            f"{name}{end}": getattr(estimate, field)
            for name, estimate in estimates.items()
            for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
        }


class MaiteModule(nn.Module):
    """A MAITE Model as a torch module, which `evaluate` and `attack` take.

    A MAITE Model has no gradients, so that it is attacked by queries.

    Attributes:
        queries_only: True.
    """

    queries_only = True

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a structural type
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model returns for images `(b, c, h, w)` in [0,1], as `(b, k)`."""
        answers = self.model(list(x.detach().cpu().numpy()))
        stacked = np.stack([np.asarray(answer, dtype=np.float32) for answer in answers])
        return torch.from_numpy(stacked).to(x.device)


def from_augmentation(augmentation: Any, *, name: str) -> registry.Registration:  # noqa: ANN401
    """Register a MAITE Augmentation as an attack of this process, and return the registration.

    `with from_augmentation(blur, name="blur"): evaluate(model, data, "blur", eps="8/255")` has it
    for the block. It has no radius: its change is measured, and a success counts at radii from
    there on. `--attack FILE.py:OBJECT` takes one on the command line.

    Args:
        augmentation: anything with `metadata` that maps `(images, targets, metadata)` of a batch.
        name: the name of the attack, as Python's names are.

    Raises:
        SpecError: it is no augmentation, or the name is taken or no name.
    """
    if not is_augmentation(augmentation) or not name.isidentifier():
        raise SpecError(
            "expected an Augmentation, which is callable and has metadata, and a name such as "
            f"'blur', got {type(augmentation).__name__} and {name!r}"
        )
    return registry.register("attacks", attack_of(augmentation, name))


def from_dataset(
    splits: Mapping[str, Any],
    *,
    name: str = "maite",
    title: str = "",
    classes: Sequence[str] = (),
    modality: str = "unknown",
) -> Dataset:
    """Return MAITE Datasets as one dataset of ours.

    Images are `(c, h, w)`, uint8 grey levels or floats in [0,1], all of one shape. Targets are
    one-hot, or 0 and 1 for each finding. `id` and, where there is one, `patient` are taken from the
    metadata of each datum.

    Args:
        splits: "train", "val", "test" -> a MAITE Dataset.
        name: its name in records.
        title: its name on pages.
        classes: names of the classes; by default `index2label` of its metadata, or numbers.
        modality: of the images.

    Raises:
        DataError: a split is empty, or its images or targets have another form.
    """
    arrays, findings = {}, False
    for split, data in splits.items():
        if split not in ("train", "val", "test"):
            raise DataError(f"expected splits train, val and test, got {split!r}")
        arrays[split], several = _arrays(data, f"{name} ({split})")
        findings |= several
    if not arrays:
        raise DataError(f"{name}: expected a MAITE dataset for a split, got none")
    first = next(iter(arrays))
    targets = arrays[first].labels
    metadata = getattr(splits[first], "metadata", {})
    named = metadata.get("index2label", {}) if isinstance(metadata, Mapping) else {}
    names = tuple(classes) or tuple(
        str(named.get(k, f"class {k}")) for k in range(targets.shape[1])
    )
    task: Task = "multi_label" if findings else "single_label"
    image = arrays[first].images[0]
    card = DatasetCard(
        name=name,
        title=title or name,
        modality=modality,
        task=task,
        classes=names,
        channels=1 if image.ndim == 2 else image.shape[-1],
        size=image.shape[:2],
        source="a MAITE dataset",
    )

    def read(split: SplitName) -> Arrays:
        if split not in arrays:
            raise MissingSplitError(f"{name}: expected a MAITE dataset for {split}, got none")
        stored = arrays[split]
        labels = stored.labels if findings else stored.labels.argmax(1)
        return Arrays(stored.images, labels.astype(np.int64), stored.ids, stored.patients)

    return Dataset(card, read)


def _arrays(data: Any, where: str) -> tuple[Arrays, bool]:  # noqa: ANN401 - a structural type
    """Return a MAITE Dataset as arrays with targets `(n, k)`, and whether they are findings."""
    data_ = [data[i] for i in range(len(data))]
    if not data_:
        raise DataError(f"{where}: expected images, got an empty dataset")
    images = [np.asarray(image) for image, _, _ in data_]
    targets = [np.asarray(target, dtype=np.float64) for _, target, _ in data_]
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise DataError(f"{where}: expected images of one shape (c, h, w), got {sorted(shapes)}")
    if len({target.shape for target in targets}) != 1 or targets[0].ndim != 1:
        raise DataError(f"{where}: expected targets of one shape (k,), got others")
    y = np.stack(targets)
    if not np.isin(y, (0, 1)).all():
        raise DataError(
            f"{where}: expected targets of 0 and 1, one-hot or one per finding, got fractions such "
            f"as {y[~np.isin(y, (0, 1))][0]:g}"
        )
    stack = np.stack(images)
    stack = stack[:, 0] if stack.shape[1] == 1 else np.moveaxis(stack, 1, -1)
    if stack.dtype.kind == "f":
        stack = stack.astype(np.float32)
    about = [datum for _, _, datum in data_]
    patients = [datum.get("patient") for datum in about]
    known = all(patient is not None for patient in patients)
    arrays = Arrays(
        np.ascontiguousarray(stack),
        y.astype(np.int64),
        np.array([str(datum["id"]) for datum in about]),
        np.array(patients, dtype=np.str_) if known else None,
    )
    return arrays, bool((y.sum(1) != 1).any())


def _dataset_of(data: DataLike) -> Dataset:
    """Return a dataset of images in 2-D with labels or findings.

    Raises:
        SpecError: MAITE has no protocol for it.
    """
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    card = dataset.card
    if card.task == "segmentation" or len(card.size) != 2:
        raise SpecError(
            f"{card.name}: expected images of two axes with labels or findings, which MAITE has a "
            f"protocol for, got {card.task} of size {card.size}"
        )
    return dataset


def _handle_of(model: ModelLike, data: DataLike, device: str | None) -> ModelHandle:
    if isinstance(model, ModelHandle):
        return model
    return load_model(model, dataset=data, device=device)


def _images(images: Sequence[Any]) -> Tensor:
    """Return images `(c, h, w)` in [0,1] as one float32 tensor."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    if stacked.ndim != 4:
        raise DataError(f"expected images of shape (c, h, w), got {stacked.shape[1:]}")
    return torch.from_numpy(stacked)


def _truth(targets: Sequence[Any], card: DatasetCard) -> NDArray[np.int64]:
    """Return targets `(k,)` as class ids `(n,)` or findings `(n, k)`."""
    y = np.stack([np.asarray(target) for target in targets])
    if y.shape[1:] != (len(card.classes),):
        raise DataError(
            f"expected targets of shape ({len(card.classes)},) for {card.name}, got {y.shape[1:]}"
        )
    return y.argmax(1) if card.task == "single_label" else y.astype(np.int64)


def _one_hot(y: NDArray[Any], k: int) -> NDArray[Any]:
    target: NDArray[Any] = np.eye(k, dtype=np.float32)[int(y)]
    return target
