"""Preprocess: what a device does to a stored image before its network, differentiably.

The attacked image is the one in the file. A victim windows, resizes and normalises it itself, and
the gradient flows through all of these steps. They are written as a chain, such as
`window(40, 400), resize(224, 224), stack(3)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from jaxtyping import Float
from torch import Tensor

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.contract import InputContract
from robustbench_med.errors import SpecError
from robustbench_med.models.preprocess_steps import (
    Affine,
    Clip,
    Crop,
    Resize,
    ResizeShorter,
    Stack,
    Window,
    shorter_side,
)
from robustbench_med.native_units import stated_range
from robustbench_med.spec import parse_chain
from robustbench_med.types import Images, Logits

Step = Callable[[Images], Tensor]
MAX_SIDE = 4096  # pixels that a step may make of an axis


@dataclass(frozen=True)
class Preprocess:
    """A chain of steps for images of one form.

    Attributes:
        text: the chain as a spec.
        size: size of the images in the file, in pixels.
        channels: number of channels that the network gets.
        shown: size of the images that the network gets.
        steps: the steps, in their order.
        spans: for each channel of the network, or once for all, how far its input moves while the
            window goes from black to white.
        windows: widths of the windows, as fractions of the native range; empty without a window.
        window: the stored values that the only window shows, e.g. "HU -160..240"; else empty.
        sizes: where images keep their own sizes and the network gets images of several sizes too,
            some of these; `shown` is the first.
        restores: whether the logits of masks are brought back to the size of each image.
    """

    text: str
    size: tuple[int, ...]
    channels: int
    shown: tuple[int, ...]
    steps: tuple[Step, ...]
    spans: tuple[float, ...] = (1.0,)
    windows: tuple[float, ...] = ()
    window: str = ""
    sizes: tuple[tuple[int, ...], ...] = ()
    restores: bool = False

    def __call__(self, x: Images) -> Float[Tensor, "b n *t"]:
        """Return what the network gets for images in [0,1], before mean and std."""
        for step in self.steps:
            x = step(x)
        return x

    def through_window(self, x: Images) -> Images:
        """Return images in [0,1] as the only window shows them, at their size; else unchanged."""
        for step in self.steps if self.window else ():
            if isinstance(step, Window):
                x = step(x)
        return x

    def restore(self, logits: Logits, size: tuple[int, ...]) -> Float[Tensor, "b k *s"]:
        """Return the logits of masks at the size of the file, interpolated linearly."""
        return Resize(size, antialias=False)(logits) if self.restores else logits

    @property
    def scaling(self) -> Preprocess:
        """The steps that scale what the window shows, for images of the network's own size."""
        steps = tuple(step for step in self.steps if isinstance(step, Affine))
        return replace(self, size=self.shown, steps=steps, restores=False)


# --- from text -----------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A chain as far as it is read.

    Attributes:
        size: size of the image after the steps so far.
        channels: its number of channels.
        native: the stored values behind 0 and 1, as long as no step changed them.
        masks: whether the network predicts masks.
        whole: the stored values behind 0 and 1 of the file.
        sizes: where images keep their own sizes, some of these after the steps so far.
    """

    size: tuple[int, ...]
    channels: int
    native: NativeRange | None
    masks: bool
    whole: NativeRange | None
    sizes: tuple[tuple[int, ...], ...] = ()
    steps: list[Step] = field(default_factory=list)
    spans: tuple[float, ...] = (1.0,)
    windows: tuple[float, ...] = ()
    window: str = ""


def parse_preprocess(text: str, data: DatasetCard) -> Preprocess | None:
    """Return the chain that a text describes, for images of a dataset; None for "" and "none".

    Args:
        text: the chain, e.g. "window(40, 400), resize(224, 224), stack(3)".
        data: states size, channels and native range of the images.

    Raises:
        SpecError: a step is unknown or has wrong parameters, or does not fit the images.
    """
    if text.strip() in ("", "none"):
        return None
    native = stated_range(data)
    masks = data.task == "segmentation"
    draft = _Draft(data.size, data.channels, native, masks, native, data.sizes)
    calls = parse_chain(text)
    for call in calls:
        name = {"normalize": "normalise"}.get(call.name, call.name)
        if name not in _STEPS:
            raise SpecError(
                f"preprocess: expected a step in {', '.join(_STEPS)}, got {call.name!r}"
            )
        add, form = _STEPS[name]
        try:
            add(draft, *call.values, **call.parameters)
        except TypeError:
            raise SpecError(f"preprocess: expected {form}, got {call}") from None
        except SpecError as error:
            raise SpecError(f"preprocess: {call}: {error}") from None
    return Preprocess(
        text=", ".join(map(str, calls)),
        size=data.size,
        channels=draft.channels,
        shown=draft.size,
        steps=tuple(draft.steps),
        spans=draft.spans,
        windows=draft.windows,
        window=draft.window,
        sizes=draft.sizes,
        restores=draft.size != data.size or draft.sizes != data.sizes,
    )


def _window(
    draft: _Draft,
    centre: object = None,
    width: object = None,
    *,
    low: object = None,
    high: object = None,
) -> None:
    if low is not None and high is not None and centre is None and width is None:
        low, high = _number(low), _number(high)
        _add_windows(draft, [(low, high)])
    elif low is None and high is None and centre is not None and width is not None:
        _add_windows(draft, [_ends(centre, width)])
    else:
        raise TypeError


def _windows(draft: _Draft, *pairs: object) -> None:
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError
    if draft.channels != 1:
        raise SpecError(f"expected images of one channel, got {draft.channels}")
    _add_windows(draft, [_ends(*pair) for pair in pairs])  # type: ignore[misc]
    draft.channels = len(pairs)


def _ends(centre: object, width: object) -> tuple[float, float]:
    middle, half = _number(centre), _number(width) / 2
    return middle - half, middle + half


def _add_windows(draft: _Draft, ends: list[tuple[float, float]]) -> None:
    native = _native(draft)
    for low, high in ends:
        if not low < high:
            raise SpecError(f"expected a window of positive width, got {low:g}..{high:g}")
        if high <= native.low or low >= native.high:
            raise SpecError(f"expected a window within {native.text}, got {low:g}..{high:g}")
    span = native.high - native.low
    draft.steps.append(
        Window(
            tuple(span / (high - low) for low, high in ends),
            tuple((native.low - low) / (high - low) for low, high in ends),
        )
    )
    draft.windows = tuple((high - low) / span for low, high in ends)
    if len(ends) == 1:
        draft.window = f"{native.unit} {ends[0][0]:g}..{ends[0][1]:g}"
    draft.native = None


def _clip(draft: _Draft, low: object, high: object) -> None:
    native, span = _native(draft), 0.0
    least, most = _number(low), _number(high)
    if not least < most:
        raise SpecError(f"expected low < high, got {least:g} and {most:g}")
    span = native.high - native.low
    draft.steps.append(Clip((least - native.low) / span, (most - native.low) / span))


def _native(draft: _Draft) -> NativeRange:
    """Return the stored values behind 0 and 1.

    Raises:
        SpecError: they are not known, or an earlier step changed them.
    """
    if draft.whole is None:
        raise SpecError(
            "expected data whose stored values have a unit: state native in the dataset's card or "
            "in info"
        )
    if draft.native is None:
        raise SpecError("expected it before a window, scale, native or normalise, got it after one")
    return draft.native


def _resize(draft: _Draft, *size: object, antialias: object = True) -> None:
    if not isinstance(antialias, bool):
        raise TypeError
    sides = _sides(size)
    if len(sides) == 1 and draft.sizes:
        draft.steps.append(ResizeShorter(sides[0], antialias))
        draft.sizes = tuple(shorter_side(size, sides[0]) for size in draft.sizes)
        draft.size = draft.sizes[0]
        return
    if len(sides) == 1:  # the shorter side; the others keep the shape of the image
        sides = shorter_side(draft.size, sides[0])
    _check_axes(draft, sides)
    draft.steps.append(Resize(sides, antialias))
    draft.size, draft.sizes = sides, ()


def _crop(draft: _Draft, *size: object) -> None:
    sides = _sides(size)
    sides = sides * len(draft.size) if len(sides) == 1 else sides
    _check_axes(draft, sides)
    if draft.masks:
        raise SpecError("expected a network that sees the whole image for masks, got a crop")
    for size in draft.sizes or (draft.size,):
        if any(side > whole for side, whole in zip(sides, size, strict=True)):
            raise SpecError(f"expected a crop within {list(size)}, got {list(sides)}")
    draft.steps.append(Crop(sides))
    draft.size, draft.sizes = sides, ()


def _check_axes(draft: _Draft, sides: tuple[int, ...]) -> None:
    if len(sides) != len(draft.size):
        raise SpecError(f"expected one side or {len(draft.size)}, got {len(sides)}")


def _sides(size: Sequence[object]) -> tuple[int, ...]:
    if not size or not all(type(side) is int for side in size):
        raise TypeError
    sides = tuple(int(str(side)) for side in size)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise SpecError(f"expected sides in 1..{MAX_SIDE}, got {', '.join(map(str, sides))}")
    return sides


def _stack(draft: _Draft, channels: object) -> None:
    if type(channels) is not int:
        raise TypeError
    if draft.channels != 1:
        raise SpecError(f"expected images of one channel, got {draft.channels}")
    if not 1 <= channels <= 16:
        raise SpecError(f"expected 1 to 16 channels, got {channels}")
    draft.steps.append(Stack(channels))
    draft.channels = channels
    draft.spans = draft.spans if len(draft.spans) == 1 else draft.spans * channels


def _normalise(draft: _Draft, mean: object, std: object) -> None:
    means, stds = _numbers(draft, mean), _numbers(draft, std)
    if min(stds) <= 0:
        raise SpecError(f"expected std above 0, got {min(stds):g}")
    count = max(len(means), len(stds))
    means, stds = (values * count if len(values) == 1 else values for values in (means, stds))
    offsets = tuple(-m / s for m, s in zip(means, stds, strict=True))
    _add_affine(draft, tuple(1 / s for s in stds), offsets)


def _scale(draft: _Draft, low: object, high: object) -> None:
    least, most = _number(low), _number(high)
    if not least < most:
        raise SpecError(f"expected low < high, got {least:g} and {most:g}")
    _add_affine(draft, (most - least,), (least,))


def _to_native(draft: _Draft) -> None:
    native = _native(draft)
    _add_affine(draft, (native.high - native.low,), (native.low,))


def _add_affine(draft: _Draft, factor: tuple[float, ...], offset: tuple[float, ...]) -> None:
    draft.steps.append(Affine(factor, offset))
    count = max(len(factor), len(draft.spans))
    spans, factors = (v * count if len(v) == 1 else v for v in (draft.spans, factor))
    draft.spans = tuple(span * f for span, f in zip(spans, factors, strict=True))
    draft.native = None


def _numbers(draft: _Draft, values: object) -> tuple[float, ...]:
    numbers = tuple(map(_number, values if isinstance(values, list | tuple) else [values]))
    if len(numbers) not in (1, draft.channels):
        raise SpecError(f"expected 1 number or {draft.channels}, got {len(numbers)}")
    return numbers


def _number(value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError
    if not math.isfinite(value):
        raise SpecError(f"expected finite numbers, got {value}")
    return float(value)


_STEPS: dict[str, tuple[Callable[..., None], str]] = {
    "window": (_window, "window(centre, width) or window(low=..., high=...)"),
    "windows": (_windows, "windows([centre, width], [centre, width], ...)"),
    "clip": (_clip, "clip(low, high)"),
    "resize": (_resize, "resize(height, width), resize(shorter_side) or with antialias=False"),
    "crop": (_crop, "crop(height, width) or crop(side)"),
    "stack": (_stack, "stack(channels)"),
    "scale": (_scale, "scale(low, high)"),
    "native": (_to_native, "native()"),
    "normalise": (_normalise, "normalise(mean, std)"),
}


# --- what it means for cards and contracts -------------------------------------------------------


def seen_by_network(data: DatasetCard, steps: Preprocess | None) -> DatasetCard:
    """Return the card of images as a network gets them after the steps before it."""
    if steps is None:
        return data
    return data.model_copy(
        update={"channels": steps.channels, "size": steps.shown, "sizes": steps.sizes}
    )


def bridge(what: str, wanted: Any, got: Any) -> str:  # noqa: ANN401 - a field of a card
    """Return which steps make images fit a network, as the end of a message; "" if none can."""
    if what == "size" and len(wanted) == len(got):
        sides = ", ".join(map(str, wanted))
        return f', or add --preprocess "resize({sides})"'
    return f', or add --preprocess "stack({wanted})"' if (what, got) == ("channels", 1) else ""


def with_preprocess(victim: str, steps: str) -> str:
    """Return the text of a victim with the steps before it, unless it states its own.

    A module that was passed in from Python keeps its own.

    >>> with_preprocess("timm:resnet18(pretrained=True)", "window(40, 400)")
    "timm:resnet18(pretrained=True, preprocess='window(40, 400)')"
    >>> with_preprocess("chest_resnet", "resize(64, 64)")
    "chest_resnet(preprocess='resize(64, 64)')"
    """
    if not steps or "preprocess=" in victim or victim.startswith("module:"):
        return victim
    stated = f"preprocess={steps!r}"
    if not victim.endswith(")"):
        return f"{victim}({stated})"
    inside = victim[:-1].rstrip()
    return f"{inside}{'' if inside.endswith('(') else ', '}{stated})"


def rebound(contract: InputContract, data: DatasetCard) -> InputContract:
    """Return a contract whose window is in the unit of other data."""
    if contract.preprocess is None:
        return contract
    return replace(contract, preprocess=parse_preprocess(contract.preprocess.text, data))
