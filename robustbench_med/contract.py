"""The input contract of a deployed model, checked where it is made: channels, size, statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from robustbench_med.errors import SpecError

Returns = Literal["auto", "logits", "probabilities"]
RETURNS: tuple[Returns, ...] = ("auto", "logits", "probabilities")

# images are in [0,1]: no mean or standard deviation of them is far outside, those of grey levels
# 0..255 nearly always are
_LARGEST = 2.0
_LOWEST_MEAN = -1.0


@dataclass(frozen=True)
class InputContract:
    """What the deployed model expects, and what it returns.

    Attributes:
        channels: number of image channels; `names` says what they are, where it matters.
        size: `(h, w)` or `(d, h, w)` in pixels.
        mean, std: one number, or one a channel, in [0,1] units. Normalisation happens inside the
            victim, so that a ball is always measured on the image a person would see.
        native_range: what 0 and 1 stand for, e.g. "grey level 0..255" or "HU -1000..400".
        bit_depth: bits a stored pixel has.
        spacing: mm a pixel along each axis, where known.
        returns: "logits", whose decision is at 0; "probabilities", whose decision is at 0.5; or
            "auto": the bench looks, and says what it took them for.
        output: which of several outputs is read: a key, an attribute, a place, or a tuple of them
            for one inside another; None = `logits`, `out`, the only one that fits the data, or the
            first head of a list.

    Raises:
        SpecError: a mean or standard deviation that is no statistic of images in [0,1], or another
            number of them than 1 or the channels.
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

    def __post_init__(self) -> None:
        check_returns(self.returns)
        check_output(self.output)
        for name in ("mean", "std"):
            values = statistic(name, getattr(self, name), self.channels)
            object.__setattr__(self, name, values)


def contract_of(
    channels: int,
    size: tuple[int, ...],
    stated: Mapping[str, Any],
    **rest: Any,  # noqa: ANN401 - fields of a contract
) -> InputContract:
    """Return the contract of what a person states, in any form.

    Args:
        channels: number of image channels.
        size: of an image in pixels.
        stated: `mean`, `std`, `returns`, `output`; what is None is not stated.
        rest: the other fields.

    Raises:
        SpecError: as InputContract.
    """
    ours = {key: value for key, value in stated.items() if value is not None}
    for name in {"mean", "std"} & ours.keys():
        ours[name] = statistic(name, ours[name], channels)
    check_returns(ours.get("returns", "auto"))
    if isinstance(ours.get("output"), list):
        ours["output"] = tuple(ours["output"])
    check_output(ours.get("output"))
    return InputContract(channels=channels, size=size, **ours, **rest)


def check_returns(returns: object) -> None:
    """Raise SpecError unless this is a way in which outputs can be read."""
    if not isinstance(returns, str) or returns not in RETURNS:
        raise SpecError(
            f"expected returns='logits', 'probabilities' or 'auto', got {_short(returns)}"
        )


def check_output(output: object) -> None:
    """Raise SpecError unless this can name one of several outputs."""
    parts = output if isinstance(output, tuple) else (output,)
    if output is not None and not all(
        isinstance(one, str | int) and not isinstance(one, bool) for one in parts
    ):
        raise SpecError(
            "expected output='KEY', a place such as output=0, or a tuple of them, got "
            f"{_short(output)}"
        )


def statistic(name: str, values: object, channels: int) -> tuple[float, ...]:
    """Return a mean or a standard deviation as floats, one or one a channel.

    Args:
        name: "mean" or "std".
        values: a number, or a list, tuple, array or tensor of numbers.
        channels: of an image.

    Raises:
        SpecError: something else, another number of them, or no statistic of images in [0,1].
    """
    numbers = tuple(_numbers(name, values))
    if len(numbers) not in (1, channels):
        wanted = "1 number" if channels == 1 else f"1 number or {channels}, one a channel"
        raise SpecError(f"{name}: expected {wanted}, got {len(numbers)}: {_listed(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"{name}: expected finite numbers, got {_listed(numbers)}")
    if max(numbers) > _LARGEST or (name == "mean" and min(numbers) < _LOWEST_MEAN):
        raise SpecError(
            f"{name}: expected a statistic of images in [0,1], got {_listed(numbers)}: divide by "
            "255 what was measured on grey levels 0..255 (by 65535 on 16 bits)"
        )
    if name == "std" and min(numbers) <= 0:
        raise SpecError(f"std: expected numbers above 0, got {_listed(numbers)}")
    return numbers


def _numbers(name: str, values: object) -> Iterable[float]:
    flat = list(_flat(values))
    if not flat or not all(isinstance(v, Real) and not isinstance(v, bool) for v in flat):
        raise SpecError(f"expected {name}=[a number a channel], got {_short(values)}")
    return map(float, flat)  # type: ignore[arg-type]


def _flat(value: object) -> Iterable[object]:
    """Yield the numbers of arrays and lists of any shape, such as (1, c, 1, 1)."""
    if not isinstance(value, Real | str) and hasattr(value, "tolist") and hasattr(value, "shape"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{one:g}" for one in numbers)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
