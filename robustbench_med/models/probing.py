"""Probe a user's own model with a few images, to decide how its outputs are read.

The decision is made once, when the model is loaded, and is logged. It follows these rules:

1. If the model returns a container, the only tensor whose shape fits the data is read; if several
   fit, the one named `logits`, else the one named `out`, else the first of a list or tuple.
2. A missing class axis is added if only one position is possible.
3. A model whose last operation is a sigmoid or softmax returns probabilities, and one whose last
   operation is affine returns logits (robustbench_med/models/endings.py). After any other last
   operation, outputs that stay within [0,1] on ordinary and extreme images are probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from robustbench_med.errors import VictimError
from robustbench_med.models.endings import (
    LOG_SIGMOID,
    LOG_SOFTMAX,
    SCALE,
    Ending,
    bypassing,
    ending_of,
    link_of,
)
from robustbench_med.outputs import Path, Reading, described, fits, leaves, same_order
from robustbench_med.rng import seeded
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen

_HEADS = ("logits", "out")  # names of the main output in transformers and torchvision
_SLACK = 1e-4  # probabilities may leave [0,1] by this much
_DEPENDS = (
    "the answer to an image depends on the other images asked with it, as with batch norm in "
    "training mode"
)


@dataclass(frozen=True)
class Expected:
    """The outputs that the data require of a model.

    Attributes:
        widths: admissible numbers of logits; () = any.
        masks: whether logits are required at every pixel.
        findings: whether each logit is that of an independent finding.
    """

    widths: tuple[int, ...]
    masks: bool = False
    findings: bool = False

    def width(self, shape: tuple[int, ...], n: int, size: tuple[int, ...]) -> int | None:
        """Return the number of logits in outputs of a shape for n images; None if none fits."""
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
        """The required outputs in words."""
        widths = " or ".join(map(str, self.widths)) or "some"
        return f"{widths} logits{' at every pixel' if self.masks else ''}"


class Probed(NamedTuple):
    """How the outputs of a module are read, with notes for the user."""

    reading: Reading
    notes: tuple[str, ...] = ()


def probe(victim: Victim, expected: Expected) -> Probed:
    """Return how logits are read from the outputs of a victim's module.

    Args:
        victim: its module and contract; statements of the contract are not probed.
        expected: outputs that the data require.

    Raises:
        VictimError: the module has no weights yet, or changes them during a forward pass; it reads
            no single image, returns no tensor of numbers, or several candidates; or its outputs
            contradict the contract.
    """
    check_weights(victim.module)
    with frozen(victim.module), seeded("probe"), _unchanging(victim.module), torch.no_grad():
        prober = _Prober(replace(victim, reading=Reading(dtype=_dtype(victim.module))))
        path, note = _path(prober, expected)
        notes = [note] if note else []
        shape = tuple(prober.tensors(2)[path].shape)
        width = expected.width(shape, 2, prober.size)
        if len(shape) < 2 and width is None:
            raise VictimError(
                f"expected {expected.text} of each image, got outputs {shape} for 2 images"
            )
        if width is None:  # Victim.check raises an error with the expected width
            return Probed(replace(prober.victim.reading, path=path), tuple(notes))
        reading = replace(prober.victim.reading, path=path, width=width, masks=expected.masks)
        _check_each(prober, replace(expected, widths=(width,)), path)
        reading, note = _linked(prober, reading, expected)
        notes += [note] if note else []
        notes += _oddities(prober, reading)
    return Probed(reading, tuple(notes))


_OF_SIZE = re.compile(r"shape|size|dimension|mat1", re.IGNORECASE)


class _Prober:
    """A module with the images of the probe and its outputs for them."""

    def __init__(self, victim: Victim) -> None:
        self.victim, self.size = victim, victim.contract.size
        parameter = next(victim.module.parameters(), None)
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((3, victim.contract.channels, *self.size), generator=generator)
        self.x: Images = x if parameter is None else x.to(parameter.device)
        self.counts = (2, 1, 3) if victim.chunk >= 3 else (2, 1)
        self._known: dict[int, object] = {}

    def raw(self, n: int) -> object:
        """Return the output of the module for the first n images, which is computed once."""
        if n not in self._known:
            self._known[n] = self.again(self.x[:n])
        return self._known[n]

    def again(self, x: Images) -> object:
        """Return the output of the module for images, computed anew."""
        try:
            return self.victim.module(self.victim.normalised(x))
        except Exception as error:  # a model is foreign code and may raise anything
            first = (str(error) or type(error).__name__).splitlines()[0]
            alone = " one by one" if len(x) == 1 else ""
            if x.shape[1] == 1 and self._reads_colour(x):
                raise VictimError(
                    f"expected a model that reads {tuple(x.shape[1:])} images, got one that reads "
                    '3 channels: add --preprocess "stack(3)", or preprocess="stack(3)" in Python'
                ) from None
            raise VictimError(
                f"expected a model that reads {tuple(x.shape[1:])} images{alone}, got: {first}"
                + (_resize_advice(x) if _OF_SIZE.search(first) else "")
            ) from None

    def _reads_colour(self, x: Images) -> bool:
        """Return whether the module accepts images whose one channel is repeated three times."""
        try:
            self.victim.module(self.victim.normalised(x).expand(-1, 3, *x.shape[2:]))
        except Exception:  # a model is foreign code and may raise anything
            return False
        return True

    def tensors(self, n: int) -> dict[Path, Tensor]:
        """Return the tensors in the output for the first n images."""
        return leaves(self.raw(n))

    def numbers(self, reading: Reading, n: int) -> Tensor:
        """Return the outputs for the first n images, before their conversion to logits."""
        return reading.shaped(self.raw(n), self.x[:n]).double()


def _resize_advice(x: Images) -> str:
    sides = ", ".join(["224"] * (x.ndim - 2))
    return f'; a network of another size needs its own size, as in --preprocess "resize({sides})"'


def check_weights(module: nn.Module) -> None:
    """Raise VictimError if a weight of a module has no values."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise VictimError(
                f"expected a model with weights, got {name!r} without a shape: call it on one "
                "image first, which initialises lazy layers"
            )
        if parameter.is_meta:
            raise VictimError(
                f"expected a model with weights, got {name!r} on the meta device: load its weights"
            )


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Return the type of a module's weights; None if they are float32."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return None if not kinds or torch.float32 in kinds else kinds.pop()


@contextmanager
def _unchanging(module: nn.Module) -> Iterator[None]:
    """Raise VictimError if a module changes its own weights in the block; they are restored."""
    before = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    try:
        yield
    finally:
        changed = [
            (parameter, value) for parameter, value in before if _differ(parameter.detach(), value)
        ]
        with torch.no_grad():
            for parameter, value in changed:
                parameter.copy_(value)
    if changed:
        raise VictimError(
            "expected a model whose weights do not change, got one that changes them in a forward "
            "pass (adaptation at test time): its outputs depend on the images before"
        )


def _differ(value: Tensor, before: Tensor) -> bool:
    return not torch.equal(value, before) and not bool(before.isnan().any())


# --- the path of the logits -----------------------------------------------------------------------


def _path(prober: _Prober, expected: Expected) -> tuple[Path, str]:
    """Return the path of the logits in the module's output, and a note for the user."""
    raw, tensors = prober.raw(2), prober.tensors(2)
    stated = prober.victim.contract.output
    if stated is not None:
        path = stated if isinstance(stated, tuple) else (stated,)
        if path not in tensors:
            raise VictimError(f"expected a tensor at output={_shown(path)}, got {described(raw)}")
        return path, ""
    if isinstance(raw, Tensor):
        return (), ""
    path = _head(prober, expected)
    return path, f"of what the model returns, {_shown(path)} is read as its answer"


def _head(prober: _Prober, expected: Expected) -> Path:
    """Return the path of the logits among several outputs."""
    raw, tensors = prober.raw(2), prober.tensors(2)
    if not tensors:
        raise VictimError(f"expected a tensor of {expected.text}, got {described(raw)}")
    fitting = [
        path
        for path, tensor in tensors.items()
        if tensor.is_floating_point() and expected.width(tensor.shape, 2, prober.size) is not None
    ]
    if len(fitting) == 1:
        return fitting[0]
    for name in _HEADS:
        named = [path for path in fitting if path[-1] == name]
        if len(named) == 1:
            return named[0]
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


def _check_each(prober: _Prober, expected: Expected, path: Path) -> None:
    """Raise VictimError unless batches of one, two and three images give one output per image."""
    for n in prober.counts:
        output = prober.tensors(n).get(path)
        if output is None or expected.width(output.shape, n, prober.size) is None:
            got = "none" if output is None else str(tuple(output.shape))
            raise VictimError(
                f"expected one output per image, got outputs {got} for {n} images: keep the "
                "images on the first axis"
            )


# --- the meaning of the numbers -----------------------------------------------------------------


def _linked(prober: _Prober, reading: Reading, expected: Expected) -> tuple[Reading, str]:
    """Return the reading with its link to logits, and a note for the user."""
    stated, p = prober.victim.contract.returns, prober.numbers(reading, 2)
    independent = expected.findings or reading.width == 1
    if stated == "logits":
        return reading, ""
    end = ending_of(prober.victim, prober.x[:2], reading)
    if end.row:
        shorter = _before_row(prober, reading, end, independent=independent)
        if shorter is not None:
            return shorter, (
                f"the model ends in {_in_words(end.row)}: logits are taken from before "
                f"{'both' if len(end.row) == 2 else 'all of them'}; its decision is theirs, its "
                "probabilities are not"
            )
    logarithms = end.name == LOG_SIGMOID or (end.name == LOG_SOFTMAX and independent)
    if stated == "probabilities":
        if not _within(p):
            raise VictimError(
                f"expected probabilities in [0,1], got {float(p.min()):.3g} to "
                f"{float(p.max()):.3g}: leave returns='probabilities' out"
            )
        note = ""
    elif logarithms:
        note = f"the model ends in a {end.name}: its outputs are read as log-probabilities"
    elif end.affine or end.name == LOG_SOFTMAX:
        return replace(reading, certain=True), ""
    elif end.name:
        note = f"the model ends in a {end.name}: its outputs are read as probabilities"
    else:
        outputs_by_batch = [p, *_stressed(prober, reading)]
        varied = float(torch.cat([outputs.flatten() for outputs in outputs_by_batch]).std()) > 0
        if not (varied and all(map(_within, outputs_by_batch))):
            return reading, _one_sided(outputs_by_batch) if independent else ""
        p = torch.cat(outputs_by_batch)
        note = (
            "the outputs stay within [0,1] on all images tried, extreme ones too: they are read "
            "as probabilities"
        )
    if note:
        note += ", with the threshold at 0.5" if independent else ""
        note += " (returns='logits' takes them as they are)"
    linked = replace(
        reading,
        link="log_odds" if logarithms and stated == "auto" else link_of(p, independent=independent),
        certain=bool(end.name) or stated == "probabilities",
    )
    return _bypassing(prober, linked, end), note


def _is_one_scale(logits: Tensor, outputs: Tensor) -> bool:
    """Whether outputs are the softmax of logits with one factor and one offset for all classes.

    A factor for each class moves the decision, which few images need not show.
    """
    p, out = logits.double().softmax(1).flatten(), outputs.double().flatten()
    line = torch.stack([p, torch.ones_like(p)], 1)
    fitted = line @ torch.linalg.lstsq(line, out[:, None]).solution
    return bool((fitted[:, 0] - out).abs().max() <= 1e-3 * out.abs().max())


def _before_row(
    prober: _Prober, reading: Reading, end: Ending, *, independent: bool
) -> Reading | None:
    """Return a reading of the logits before several functions at the end of a module.

    Each of them keeps the order of the classes, and thereby the decision. Return None if a scale
    does not, or belongs to a probability by itself, which is read as it is.

    Raises:
        VictimError: there are two squashing functions, and the values before them cannot be read,
            or are probabilities by themselves, which are above 0.5 after the second.
    """
    scaled = sum(name != SCALE for name in end.row) < 2
    if independent and scaled:
        return None
    if end.bypass_row is not None and not independent:
        shorter, x = replace(reading, bypass=end.bypass_row, certain=True), prober.x[:2]
        kept = True
        for image in (x, 1 - x, 100 * (x - 0.5), -100 * (x - 0.5)):
            with suppress(Exception):  # foreign code may raise anything for extreme values
                outputs = reading.shaped(prober.again(image), image)
                victim = prober.victim
                logits = shorter.logits(victim.module, victim.normalised(image))
                kept &= same_order(logits, outputs)
                kept &= not scaled or _is_one_scale(logits, outputs)
        if kept or scaled:
            return shorter if kept else None
    raise VictimError(
        f"expected a model that ends in logits or in one softmax or sigmoid, got "
        f"{_in_words(end.row)}, behind which gradients vanish: export it without them, or let "
        "returns='logits' take its outputs as they are"
    )


def _in_words(row: tuple[str, ...]) -> str:
    """Return functions in the order in which they are computed.

    >>> _in_words(("scale", "softmax"))
    'a softmax and then a scale'
    """
    return " and then ".join(f"a {name}" for name in reversed(row))


def _bypassing(prober: _Prober, reading: Reading, end: Ending) -> Reading:
    return bypassing(prober.victim, prober.x[:2], reading, end, prober.numbers(reading, 2))


def _within(p: Tensor) -> bool:
    return bool(((p > -_SLACK) & (p < 1 + _SLACK)).all())


def _one_sided(outputs_by_batch: list[Tensor]) -> str:
    """Return a warning if all outputs lie on one side of 0, the threshold of a logit."""
    numbers = torch.cat([outputs.flatten() for outputs in outputs_by_batch])
    low, high = float(numbers.min()), float(numbers.max())
    if low == high or low <= 0 < high:
        return ""
    return (
        f"no image tried gave an output {'below' if low > 0 else 'above'} 0, where a logit "
        "decides: without an operating point chosen on validation all images are called alike"
    )


def _stressed(prober: _Prober, reading: Reading) -> Iterator[Tensor]:
    """Yield the finite outputs for extreme images."""
    x = prober.x[:2]
    centred = x - 0.5
    for image in (0 * x, 0 * x + 1, 0 * x + 0.5, 100 * centred, -100 * centred, 1e4 * centred):
        try:
            p = reading.shaped(prober.again(image), x).double()
        except VictimError:  # a model may refuse extreme values
            continue
        if torch.isfinite(p).all():
            yield p


def _oddities(prober: _Prober, reading: Reading) -> Iterator[str]:
    """Yield notes on unusual behaviour of a module."""
    answers = [prober.numbers(reading, n)[0] for n in prober.counts]
    if not all(_close(answers[0], answer) for answer in answers):
        again = reading.shaped(prober.again(prober.x[:2]), prober.x[:2]).double()
        if _close(answers[0], again[0]):  # else the module is random
            yield _DEPENDS
    if any(getattr(module, "training", False) for module in prober.victim.module.modules()):
        yield "the model puts parts of itself into training mode when it is asked"
    if reading.dtype in (torch.float16, torch.bfloat16):
        yield (
            f"the model computes in {str(reading.dtype).removeprefix('torch.')}: hand in "
            "model.float() to attack it in full precision"
        )


def _close(logits: Tensor, reference: Tensor) -> bool:
    scale = float(logits.nan_to_num(0, 0, 0).abs().max().clamp_min(1e-6))
    return torch.allclose(logits, reference, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
