"""A MAITE Augmentation as an attack: what it returns is measured and judged by the bench."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError

if TYPE_CHECKING:  # the registry imports this module, and `list` imports no torch
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from robustbench_med.problem import Problem
    from robustbench_med.rng import Draws
    from robustbench_med.types import Images


def is_augmentation(item: object) -> bool:
    """Return whether an object is an Augmentation: callable, with `metadata`, and no function."""
    plain = isinstance(item, type) or inspect.isroutine(item)
    return not plain and callable(item) and isinstance(getattr(item, "metadata", None), Mapping)


def attack_of(augmentation: Any, name: str) -> Callable[..., Any]:  # noqa: ANN401 - a structural type
    """Return an attack that asks an augmentation for an image once, whatever the radius.

    An augmentation states no radius. So it is run as an attack is that looks for the nearest
    success: the size of its change is measured, and a success counts at the radii from there on.
    Images are passed one at a time, to a copy of the augmentation, with the generators of Python,
    numpy and torch seeded for the image, so that neither batches nor their order change an image.

    Args:
        augmentation: maps `(images, targets, metadata)` of a batch to the same three; images are
            `(c, h, w)` float32 in [0,1], targets `(k,)`, and the metadata has an `id`.
        name: the name of the attack.
    """
    title = str(augmentation.metadata.get("id") or name)

    def augmented(problem: Problem, *, rng: Draws) -> Images:
        import torch

        x = problem.x
        if not len(x):
            return x.clone()
        targets = _targets(problem)
        changed = []
        for row, key in enumerate(rng.keys.tolist()):
            with _seeded(key):
                changed.append(_one(augmentation, x[row], targets[row], f"{key:x}"))
        z = torch.stack(changed).to(x)
        if not torch.isfinite(torch.as_tensor(problem.ball.eps)).all():
            return z
        inside = problem.ball.size(z, x) <= torch.as_tensor(problem.ball.eps) * (1 + 1e-6)
        return torch.where(inside.view(-1, *[1] * (x.ndim - 1)), z, x)

    augmented.__name__ = name
    augmented.__doc__ = "Return what an augmentation makes of each image, whatever the radius."
    return attack(
        title=title,
        summary="An augmentation without a radius: it succeeds at radii from its own change on.",
        source="a MAITE Augmentation",
        norms=("linf", "l2", "l1", "l0"),
        schedule="distance",
        threat="query",
        tasks=("single_label", "multi_label"),
        cost=lambda: 1,
    )(augmented)


def _targets(problem: Problem) -> NDArray[np.float32]:
    """Return the truth as `(b, k)`, one-hot for labels."""
    import numpy as np

    y = problem.y.cpu().numpy()
    if y.ndim == 2:
        findings: NDArray[np.float32] = y.astype(np.float32)
        return findings
    width = problem.judge(problem.x[:1]).logits.shape[1]
    rows: NDArray[np.float32] = np.eye(max(2, width), dtype=np.float32)[y]
    return rows


def _one(augmentation: Any, x: torch.Tensor, target: Any, key: str) -> torch.Tensor:  # noqa: ANN401
    """Return one image as an augmentation changes it.

    Raises:
        SpecError: it returns another number of images, another target, or no such image.
    """
    import numpy as np
    import torch

    fresh = augmentation
    with suppress(Exception):  # anybody's object; one that cannot be copied is used as it is
        fresh = copy.deepcopy(augmentation)
    images, targets, _ = fresh(([x.cpu().numpy().copy()], [target.copy()], [{"id": key}]))
    if len(images) != 1 or len(targets) != 1:
        raise SpecError(f"expected 1 image of the augmentation for 1, got {len(images)}")
    if not np.array_equal(np.asarray(targets[0]), target):
        raise SpecError(
            "expected an augmentation that keeps the targets, got others: success is judged by them"
        )
    image = np.asarray(images[0])
    if image.shape != tuple(x.shape) or image.dtype.kind != "f" or not np.isfinite(image).all():
        raise SpecError(
            f"expected finite floats in [0,1] of shape {tuple(x.shape)} of the augmentation, got "
            f"{image.dtype} of shape {image.shape}"
        )
    return torch.from_numpy(image.astype(np.float32))


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch; restore them afterwards."""
    import numpy as np

    from robustbench_med.rng import seeded

    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed(key & 0xFFFF_FFFF)  # noqa: NPY002
    try:
        with seeded(key):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
