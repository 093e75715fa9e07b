"""The input contract of a deployed model: channels, size and statistics, which are checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from robustbench_med.errors import SpecError

if TYPE_CHECKING:
    from robustbench_med.models.preprocess import Preprocess

Returns = Literal["auto", "logits", "probabilities"]
RETURNS: tuple[Returns, ...] = ("auto", "logits", "probabilities")

# The mean and standard deviation of images in [0,1] lie near it; those of grey levels 0..255 nearly
# always lie far outside.
_LARGEST = 2.0
_LOWEST_MEAN = -1.0


@dataclass(frozen=True)
class InputContract:
    """What the deployed model expects and returns.

    Attributes:
        channels: number of image channels; `names` are their names, where they matter.
        size: `(h, w)` or `(d, h, w)` in pixels.
        sizes: where each image keeps its own size, some of them; empty = every image has `size`.
        preprocess: the steps between an image of this form and `mean` and `std`; None = no step.
        mean, std: one number, or one per channel of the network, in [0,1] units. The victim
            normalises its images itself, so that a ball is always measured on the image that a
            person would see.
        native_range: what 0 and 1 stand for, e.g. "grey level 0..255" or "HU -1000..400".
        bit_depth: bits of a stored pixel.
        spacing: mm per pixel along each axis, where known.
        returns: "logits", whose decision is at 0; "probabilities", whose decision is at 0.5; or
            "auto": the bench finds out, and logs what it takes the outputs for.
        output: which of several outputs to read: a key, an attribute, an index, or a tuple of them
            for nested outputs. None = `logits`, `out`, the only output that fits the data, or the
            first head of a list.

    Raises:
        SpecError: a mean or standard deviation is not one of images in [0,1], or there are neither
            one nor as many as channels.
    """

    channels: int
    size: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ()
    native_range: str = "grey level 0..255"
    bit_depth: int = 8
    spacing: tuple[float, ...] | None = None
    returns: Returns = "auto"
    output: str | int | tuple[str | int, ...] | None = None
    preprocess: Preprocess | None = None
    sizes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_returns(self.returns)
        check_output(self.output)
        for name in ("mean", "std"):
            values = statistic(name, getattr(self, name), self.network_channels)
            object.__setattr__(self, name, values)

    @property
    def network_channels(self) -> int:
        """The number of channels that the network gets."""
        return self.channels if self.preprocess is None else self.preprocess.channels

    @property
    def network(self) -> InputContract:
        """The contract of the network alone: for images of its size, as its window shows them."""
        steps = self.preprocess
        if steps is None:
            return self
        return replace(
            self, channels=steps.channels, size=steps.shown, preprocess=steps.scaling, sizes=()
        )

    @property
    def spans(self) -> tuple[float, ...]:
        """How far images move from black to white before `mean` and `std`; see Preprocess."""
        return (1.0,) if self.preprocess is None else self.preprocess.spans


def contract_of(
    channels: int,
    size: tuple[int, ...],
    options: Mapping[str, Any],
    **fields: Any,  # noqa: ANN401 - fields of a contract
) -> InputContract:
    """Return the contract that a user's options describe.

    Args:
        channels: number of image channels.
        size: size of an image in pixels.
        options: `mean`, `std`, `returns` and `output` in any form; None is not stated.
        fields: the other fields of the contract.

    Raises:
        SpecError: as InputContract.
    """
    stated = {key: value for key, value in options.items() if value is not None}
    steps = fields.get("preprocess")
    for name in {"mean", "std"} & stated.keys():
        stated[name] = statistic(name, stated[name], steps.channels if steps else channels)
    check_returns(stated.get("returns", "auto"))
    if isinstance(stated.get("output"), list):
        stated["output"] = tuple(stated["output"])
    check_output(stated.get("output"))
    return InputContract(channels=channels, size=size, **stated, **fields)


def check_returns(returns: object) -> None:
    """Raise SpecError unless outputs can be read in this way."""
    if not isinstance(returns, str) or returns not in RETURNS:
        raise SpecError(
            f"expected returns='logits', 'probabilities' or 'auto', got {_short(returns)}"
        )


def check_output(output: object) -> None:
    """Raise SpecError unless this can name one of several outputs."""
    path = output if isinstance(output, tuple) else (output,)
    if output is not None and not all(
        isinstance(key, str | int) and not isinstance(key, bool) for key in path
    ):
        raise SpecError(
            "expected output='KEY', an index such as output=0, or a tuple of them, got "
            f"{_short(output)}"
        )


def statistic(name: str, values: object, channels: int) -> tuple[float, ...]:
    """Return a mean or a standard deviation as floats: one, or one per channel.

    Args:
        name: "mean" or "std".
        values: a number, or a list, tuple, array or tensor of numbers.
        channels: number of image channels.

    Raises:
        SpecError: they are not numbers, too few or too many, or no statistic of images in [0,1].
    """
    numbers = tuple(_numbers(name, values))
    if len(numbers) not in (1, channels):
        expected = "1 number" if channels == 1 else f"1 number or {channels}, one per channel"
        raise SpecError(f"{name}: expected {expected}, got {len(numbers)}: {_listed(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"{name}: expected finite numbers, got {_listed(numbers)}")
    if max(numbers) > _LARGEST or (name == "mean" and min(numbers) < _LOWEST_MEAN):
        raise SpecError(
            f"{name}: expected a statistic of images in [0,1], got {_listed(numbers)}: divide "
            "statistics of grey levels 0..255 by 255 (of 16-bit images by 65535)"
        )
    if name == "std" and min(numbers) <= 0:
        raise SpecError(f"std: expected numbers above 0, got {_listed(numbers)}")
    return numbers


def _numbers(name: str, values: object) -> Iterable[float]:
    flat = list(_flat(values))
    if not flat or not all(isinstance(v, Real) and not isinstance(v, bool) for v in flat):
        raise SpecError(f"expected {name}=[one number per channel], got {_short(values)}")
    return map(float, flat)  # type: ignore[arg-type]


def _flat(value: object) -> Iterable[object]:
    """Yield the numbers of arrays and lists of any shape, such as (1, c, 1, 1)."""
    if not isinstance(value, Real | str) and hasattr(value, "tolist") and hasattr(value, "shape"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
