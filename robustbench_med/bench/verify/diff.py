"""Diff: describe where two values of a record differ, in readable lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robustbench_med.stats import Estimate

_GREY = 16  # radii up to so many grey levels are written as n/255
_LONGEST = 60  # a line shows at most so many characters of a value
_NUMBERS = (int, float, np.number, np.bool_)
_SEVERAL = (list, tuple, np.ndarray)
EXACT = 1e-6  # relative and absolute rounding error of the same sum on another machine


def same(before: object, after: object, *, rtol: float = EXACT, atol: float = EXACT) -> bool:
    """Return whether two values are equal, numbers within a tolerance; NaN equals NaN.

    >>> same((0.1, float("nan")), [0.1 + 1e-9, float("nan")]), same("a", 1), same(1.0, 2.0)
    (True, False, False)
    """
    if isinstance(before, _NUMBERS) and isinstance(after, _NUMBERS):
        first, second = float(before), float(after)
        undefined = math.isnan(first) and math.isnan(second)
        return undefined or math.isclose(first, second, rel_tol=rtol, abs_tol=atol)
    if isinstance(before, str) and isinstance(after, str):  # also strings of NumPy
        return str(before) == str(after)
    if isinstance(before, _SEVERAL) and isinstance(after, _SEVERAL):
        pairs = zip(before, after, strict=False)
        return len(before) == len(after) and all(same(*p, rtol=rtol, atol=atol) for p in pairs)
    return type(before) is type(after) and bool(before == after)


def differences(
    before: object, after: object, path: str = "", *, rtol: float = EXACT, atol: float = EXACT
) -> Iterator[str]:
    """Yield a line for every leaf that differs between two nested values, with its path."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            where = f"{path}.{plain(str(key))}" if path else plain(str(key))
            if key not in before or key not in after:
                yield line(where, before.get(key), after.get(key))
            else:
                yield from differences(before[key], after[key], where, rtol=rtol, atol=atol)
    elif (
        isinstance(before, _SEVERAL)
        and isinstance(after, _SEVERAL)
        and len(before) == len(after)
        and any(isinstance(item, Mapping) for item in before)  # other lists are shown whole
    ):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{path}[{i}]", rtol=rtol, atol=atol)
    elif not same(before, after, rtol=rtol, atol=atol):
        yield line(path, before, after)


def line(name: str, before: object, after: object, whose: str = "recomputed") -> str:
    """Return a line that describes a difference.

    >>> line("audit.over_budget", 5, 0)
    'audit.over_budget: recorded 5, recomputed 0'
    """
    return f"{name}: recorded {_short(before)}, {whose} {_short(after)}"


def plain(text: str) -> str:
    r"""Return a text of unknown origin escaped, so that it prints as one line.

    >>> plain("dice[lesion]"), plain("\x1b[2J")
    ('dice[lesion]', "'\\x1b[2J'")
    """
    return text if text.isprintable() else ascii(text)


def written(eps: float) -> str:
    """Return a radius in its usual notation.

    >>> written(2 / 255), written(0.3)
    ('2/255', '0.3')
    """
    levels = round(eps * 255 * 2) / 2 if np.isfinite(eps) else 0
    grey = 0 < levels <= _GREY and abs(eps * 255 - levels) < EXACT
    return f"{levels:g}/255" if grey else f"{eps:g}"


def _short(value: Any) -> str:  # noqa: ANN401 - any leaf of a record
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "none" if value is None else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def shown(estimate: Estimate) -> str:
    """Return an estimate with its interval as text.

    >>> shown(Estimate(value=0.5, low=0.25, high=0.75))
    '0.500 [0.250, 0.750]'
    """
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
