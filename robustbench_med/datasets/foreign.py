"""Explain to a caller of the Python API why an object is no dataset, and what to pass instead."""

from __future__ import annotations

from robustbench_med.errors import DataError

_NPZ = "numpy.savez_compressed('mine.npz', test_images=..., test_labels=...)"
_BATCH = "Batch(x, y, ids) of robustbench_med.types for attack()"
_WAY = f"pass a name, the path of an .npz ({_NPZ}), or what load_dataset returned; or {_BATCH}"


def refused(data: object) -> DataError:
    """Return the error for an object that is no dataset.

    >>> print(str(refused(None))[:41])
    expected a dataset, got None: pass a name
    """
    return DataError(f"expected a dataset, got {_called(data)}: {_hint(data)}{_WAY}")


def _called(data: object) -> str:
    kind = type(data)
    if data is None:
        return "None"
    if isinstance(data, type):
        return f"the class {data.__name__}"
    if isinstance(data, tuple | list | dict):
        return f"a {kind.__name__} of {len(data)}"
    module = (kind.__module__ or "").partition(".")[0]
    name = kind.__name__ if module in ("builtins", "") else f"{module} {kind.__name__}"
    return f"a {name}"


def _hint(data: object) -> str:
    names = {kind.__name__ for kind in type(data).__mro__}
    if names & {"DataLoader"}:
        return "stack the batches that it yields into two arrays (torch.cat); "
    if names & {"Dataset", "IterableDataset"}:
        return "stack its images and labels into two arrays (torch.stack); "
    if names & {"Tensor", "ndarray"}:
        return "one array has either images or labels; "
    if names & {"DataFrame", "Series", "Table"}:
        return "read the images that it names into an array; "
    if isinstance(data, dict):
        return "save its arrays as splits (test_images, test_labels, val_images, ...); "
    if "Batch" in names:
        return "only attack() takes a Batch; "
    return ""
