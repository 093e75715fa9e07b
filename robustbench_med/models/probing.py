"""Probing: how the outputs of a model of one's own are read, found out by asking it a few images.

It is decided once, when the model is loaded, by these rules, and what was decided is said:

1. Of a container, the only tensor whose shape fits the data is read; of several, the one called
   `logits`, else the one called `out`, else the first of a list or tuple.
2. A class axis that is missing or squeezed away is put back where only one place is possible.
3. A model whose last operation is a sigmoid or softmax returns probabilities, one whose last is an
   affine map logits (robustbench_med/models/endings.py). Of any other last operation, outputs that
   stay within [0,1] on ordinary and on extreme images are read as probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from robustbench_med.errors import VictimError
from robustbench_med.models.endings import (
    LOG_SIGMOID,
    LOG_SOFTMAX,
    Ending,
    direct,
    ending_of,
    link_of,
)
from robustbench_med.outputs import Path, Reading, described, fits, leaves
from robustbench_med.rng import seeded
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen

_HEADS = ("logits", "out")  # what transformers and torchvision call the answer of a container
_SLACK = 1e-4  # by which a probability may leave [0,1]
_DEPENDS = (
    "the answer to an image depends on the other images asked with it, as with batch norm in "
    "training mode"
)


@dataclass(frozen=True)
class Expected:
    """What the data wants of a model.

    Attributes:
        widths: numbers of logits that will do; () = any.
        masks: whether they are wanted at every pixel.
        findings: whether each logit answers a question of its own.
    """

    widths: tuple[int, ...]
    masks: bool = False
    findings: bool = False

    def width(self, shape: tuple[int, ...], n: int, size: tuple[int, ...]) -> int | None:
        """Return the number of logits that outputs of a shape hold for n images; None = none."""
        places = size if self.masks else ()
        if self.widths:
            fitting = [k for k in self.widths if fits(tuple(shape), (n, k, *places))]
            return fitting[0] if len(fitting) == 1 else None
        inner = tuple(shape[2:])
        if (
            len(shape) > 1
            and shape[0] == n
            and (inner == places or (not places and set(inner) == {1}))
        ):
            return int(shape[1])
        return 1 if fits(tuple(shape), (n, 1, *places)) else None

    @property
    def text(self) -> str:
        """What is wanted in words."""
        widths = " or ".join(map(str, self.widths)) or "some"
        return f"{widths} logits{' at every pixel' if self.masks else ''}"


class Probed(NamedTuple):
    """How a module is read, and what a person should know of it."""

    reading: Reading
    notes: tuple[str, ...] = ()


def probe(victim: Victim, expected: Expected) -> Probed:
    """Return how the logits of a victim's module are read.

    Args:
        victim: its module and contract; what the contract states is not asked for.
        expected: what the data wants.

    Raises:
        VictimError: it has no weights yet, or changes them when it is asked; it reads no single
            image, returns no tensor of numbers, or several that could be meant; it does not return
            what the contract says.
    """
    check_weights(victim.module)
    with frozen(victim.module), seeded("probe"), _steady(victim.module), torch.no_grad():
        asked = _Asked(replace(victim, reading=Reading(dtype=_dtype(victim.module))))
        path, note = _path(asked, expected)
        notes = [note] if note else []
        shape = tuple(asked.tensors(2)[path].shape)
        width = expected.width(shape, 2, asked.size)
        if len(shape) < 2 and width is None:
            raise VictimError(
                f"expected {expected.text} of each image, got outputs {shape} for 2 images"
            )
        if width is None:  # Victim.check says what is expected
            return Probed(replace(asked.victim.reading, path=path), tuple(notes))
        reading = replace(asked.victim.reading, path=path, width=width, masks=expected.masks)
        _check_each(asked, replace(expected, widths=(width,)), path)
        reading, note = _linked(asked, reading, expected)
        notes += [note] if note else []
        notes += _oddities(asked, reading)
    return Probed(reading, tuple(notes))


class _Asked:
    """A module, the images it is asked, and what it returned of them."""

    def __init__(self, victim: Victim) -> None:
        self.victim, self.size = victim, victim.contract.size
        parameter = next(victim.module.parameters(), None)
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((3, victim.contract.channels, *self.size), generator=generator)
        self.x: Images = x if parameter is None else x.to(parameter.device)
        self.counts = (2, 1, 3) if victim.chunk >= 3 else (2, 1)
        self._known: dict[int, object] = {}

    def raw(self, n: int) -> object:
        """Return what the module returns of the first n images; it is asked once."""
        if n not in self._known:
            self._known[n] = self.again(self.x[:n])
        return self._known[n]

    def again(self, x: Images) -> object:
        """Return what the module returns of images."""
        try:
            return self.victim.module(self.victim.normalised(x))
        except Exception as error:  # a model is foreign code and may raise anything
            first = (str(error) or type(error).__name__).splitlines()[0]
            alone = " one by one" if len(x) == 1 else ""
            if x.shape[1] == 1 and self._reads_colour(x):
                axes = ", -1" * (x.ndim - 2)
                raise VictimError(
                    f"expected a model that reads {tuple(x.shape[1:])} images, got one that reads "
                    "3 channels: hand in an nn.Module whose forward calls it with "
                    f"x.expand(-1, 3{axes})"
                ) from None
            raise VictimError(
                f"expected a model that reads {tuple(x.shape[1:])} images{alone}, got: {first}"
            ) from None

    def _reads_colour(self, x: Images) -> bool:
        """Whether the module answers where the one channel of images is shown three times."""
        try:
            self.victim.module(self.victim.normalised(x).expand(-1, 3, *x.shape[2:]))
        except Exception:  # a model is foreign code and may raise anything
            return False
        return True

    def tensors(self, n: int) -> dict[Path, Tensor]:
        """Return the tensors among it."""
        return leaves(self.raw(n))

    def numbers(self, reading: Reading, n: int) -> Tensor:
        """Return the outputs of the first n images, before they are made logits."""
        return reading.shaped(self.raw(n), self.x[:n]).double()


def check_weights(module: nn.Module) -> None:
    """Raise VictimError where a module has weights without values."""
    for name, one in module.named_parameters():
        if isinstance(one, UninitializedParameter):
            raise VictimError(
                f"expected a model with weights, got {name!r} without a shape: ask it one image "
                "first, which completes lazy layers"
            )
        if one.is_meta:
            raise VictimError(
                f"expected a model with weights, got {name!r} on the meta device: load its weights"
            )


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Return the type of the images a module is shown, where its weights are not float32."""
    kinds = {one.dtype for one in module.parameters() if one.is_floating_point()}
    return None if not kinds or torch.float32 in kinds else kinds.pop()


@contextmanager
def _steady(module: nn.Module) -> Iterator[None]:
    """Raise where a module changes its own weights when it is asked; they are put back."""
    before = [(one, one.detach().clone()) for one in module.parameters()]
    try:
        yield
    finally:
        changed = [(one, value) for one, value in before if _differ(one.detach(), value)]
        with torch.no_grad():
            for one, value in changed:
                one.copy_(value)
    if changed:
        raise VictimError(
            "expected a model whose weights stay as they are, got one that changes them when it "
            "is asked (adaptation at test time): its answers depend on what was asked before"
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one, other) and not bool(other.isnan().any())


# --- where the logits are -----------------------------------------------------------------------


def _path(asked: _Asked, expected: Expected) -> tuple[Path, str]:
    """Return what leads to the logits in what is returned, and what to say of it."""
    raw, tensors = asked.raw(2), asked.tensors(2)
    stated = asked.victim.contract.output
    if stated is not None:
        path = stated if isinstance(stated, tuple) else (stated,)
        if path not in tensors:
            raise VictimError(f"expected a tensor at output={_shown(path)}, got {described(raw)}")
        return path, ""
    if isinstance(raw, Tensor):
        return (), ""
    path = _head(asked, expected)
    return path, f"of what the model returns, {_shown(path)} is read as its answer"


def _head(asked: _Asked, expected: Expected) -> Path:
    """Return the path of the answer among several outputs."""
    raw, tensors = asked.raw(2), asked.tensors(2)
    if not tensors:
        raise VictimError(f"expected a tensor of {expected.text}, got {described(raw)}")
    fitting = [
        path
        for path, one in tensors.items()
        if one.is_floating_point() and expected.width(one.shape, 2, asked.size) is not None
    ]
    if len(fitting) == 1:
        return fitting[0]
    for name in _HEADS:
        called = [path for path in fitting if path[-1] == name]
        if len(called) == 1:
            return called[0]
    if fitting and isinstance(raw, list | tuple) and not hasattr(raw, "_fields"):
        return fitting[0]
    if not fitting:
        raise VictimError(
            f"expected {expected.text} of 2 images in one of the outputs, got {described(raw)}"
        )
    raise VictimError(
        f"expected one output that fits this data, got {len(fitting)} "
        f"({', '.join(map(_shown, fitting))}): choose with output={_shown(fitting[0])}"
    )


def _shown(path: Path) -> str:
    return repr(path[0] if len(path) == 1 else path)


def _check_each(asked: _Asked, expected: Expected, path: Path) -> None:
    """Raise unless one image and three have an answer each, in the same place."""
    for n in asked.counts:
        one = asked.tensors(n).get(path)
        if one is None or expected.width(one.shape, n, asked.size) is None:
            got = "none" if one is None else str(tuple(one.shape))
            raise VictimError(
                f"expected an answer for each image, got outputs {got} for {n} images: keep "
                "the images on the first axis"
            )


# --- what the numbers mean ----------------------------------------------------------------------


def _linked(asked: _Asked, reading: Reading, expected: Expected) -> tuple[Reading, str]:
    """Return the reading with its link to logits, and what to say of it."""
    stated, p = asked.victim.contract.returns, asked.numbers(reading, 2)
    alone = expected.findings or reading.width == 1
    if stated == "logits":
        return reading, ""
    end = ending_of(asked.victim, asked.x[:2], reading)
    logarithms = end.name == LOG_SIGMOID or (end.name == LOG_SOFTMAX and alone)
    if stated == "probabilities":
        if not _within(p):
            raise VictimError(
                f"expected probabilities in [0,1], got {float(p.min()):.3g} to "
                f"{float(p.max()):.3g}: leave returns='probabilities' out"
            )
        said = ""
    elif logarithms:
        said = f"the model ends in a {end.name}: its outputs are read as log-probabilities"
    elif end.affine or end.name == LOG_SOFTMAX:
        return replace(reading, certain=True), ""
    elif end.name:
        said = f"the model ends in a {end.name}: its outputs are read as probabilities"
    else:
        every = [p, *_stressed(asked, reading)]
        varied = float(torch.cat([one.flatten() for one in every]).std()) > 0
        if not (varied and all(map(_within, every))):
            return reading, _one_sided(every) if alone else ""
        p = torch.cat(every)
        said = (
            "the outputs stay within [0,1] on all images tried, extreme ones too: they are read "
            "as probabilities"
        )
    if said:
        said += ", with the threshold at 0.5" if alone else ""
        said += " (returns='logits' takes them as they are)"
    linked = replace(
        reading,
        link="log_odds" if logarithms and stated == "auto" else link_of(p, alone=alone),
        certain=bool(end.name) or stated == "probabilities",
    )
    return _direct(asked, linked, end), said


def _direct(asked: _Asked, reading: Reading, end: Ending) -> Reading:
    return direct(asked.victim, asked.x[:2], reading, end, asked.numbers(reading, 2))


def _within(p: Tensor) -> bool:
    return bool(((p > -_SLACK) & (p < 1 + _SLACK)).all())


def _one_sided(every: list[Tensor]) -> str:
    """Return a warning of outputs that stay on one side of 0, where a logit decides."""
    numbers = torch.cat([one.flatten() for one in every])
    low, high = float(numbers.min()), float(numbers.max())
    if low == high or low <= 0 < high:
        return ""
    return (
        f"no image tried gave an output {'below' if low > 0 else 'above'} 0, where a logit "
        "decides: without an operating point chosen on validation all images are called alike"
    )


def _stressed(asked: _Asked, reading: Reading) -> Iterator[Tensor]:
    """Yield the finite outputs on images far from ordinary ones."""
    x = asked.x[:2]
    centred = x - 0.5
    for image in (0 * x, 0 * x + 1, 0 * x + 0.5, 100 * centred, -100 * centred, 1e4 * centred):
        try:
            p = reading.shaped(asked.again(image), x).double()
        except VictimError:  # it may refuse what is no image
            continue
        if torch.isfinite(p).all():
            yield p


def _oddities(asked: _Asked, reading: Reading) -> Iterator[str]:
    """Yield what is odd about the way a module answers."""
    answers = [asked.numbers(reading, n)[0] for n in asked.counts]
    if not all(_close(answers[0], one) for one in answers):
        again = reading.shaped(asked.again(asked.x[:2]), asked.x[:2]).double()
        if _close(answers[0], again[0]):  # else it draws at random
            yield _DEPENDS
    if any(getattr(part, "training", False) for part in asked.victim.module.modules()):
        yield "the model puts parts of itself into training mode when it is asked"
    if reading.dtype in (torch.float16, torch.bfloat16):
        yield (
            f"the model computes in {str(reading.dtype).removeprefix('torch.')}: hand in "
            "model.float() to attack it in full precision"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(one.nan_to_num(0, 0, 0).abs().max().clamp_min(1e-6))
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
