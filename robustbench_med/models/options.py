"""Read the options of a user's own model: statistics, window, and the steps before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.contract import InputContract, contract_of, statistic
from robustbench_med.errors import SpecError
from robustbench_med.models.preprocess import Preprocess, parse_preprocess

OPTIONS = (
    *("weights", "pretrained", "mean", "std", "window", "overlap", "returns", "output"),
    "preprocess",
    "unpickle",
)


def read_statistics(
    options: Mapping[str, Any], default: Mapping[str, Any], data: DatasetCard
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: as stated, else those of the architecture, else 0 and 1.

    Raises:
        SpecError: only one of the two is stated although the architecture has both, or the numbers
            do not fit the data.
    """
    names = ("mean", "std")
    if any(name in options for name in names):
        missing = [name for name in names if name not in options]
        if missing and default.get(missing[0]):
            raise SpecError(
                f"expected mean=[..] and std=[..] together, got no {missing[0]}: the network's own "
                "two belong together"
            )
        default_statistics = {"mean": (0.0,), "std": (1.0,)}
        mean, std = (
            statistic(n, options.get(n, default_statistics[n]), data.channels) for n in names
        )
        return mean, std
    mean, std = tuple(default.get("mean") or (0.0,)), tuple(default.get("std") or (1.0,))
    if data.channels == 1:  # timm folds RGB stems into one channel; the statistics fold likewise
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) not in (1, data.channels):
        raise SpecError(
            f"expected mean=[..] and std=[..] with {data.channels} numbers, one per channel, "
            f"got none: the network's own have {len(mean)} channels"
        )
    return mean, std


def read_window(options: dict[str, Any], data: DatasetCard) -> tuple[tuple[int, ...] | None, float]:
    """Return the window and overlap of a spec; (None, 0.25) if it reads whole images."""
    window, overlap = options.get("window"), options.get("overlap", 0.25)
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise SpecError(f"expected overlap in [0,1), got {overlap!r}")
    if window is None:
        return None, float(overlap)
    sides = window if isinstance(window, list | tuple) else ()
    fits = [isinstance(w, int) and 0 < w <= side for w, side in zip(sides, data.size, strict=False)]
    if len(sides) != len(data.size) or not all(fits):
        raise SpecError(f"expected window=[..] within {list(data.size)}, got {window!r}")
    return tuple(sides), float(overlap)


def read_steps(options: Mapping[str, Any], data: DatasetCard) -> Preprocess | None:
    """Return the steps that a model states, or else those of the dataset's card.

    Raises:
        SpecError: a step is unknown or does not fit the images.
    """
    text = options.get("preprocess")
    text = data.preprocess if text is None else text
    if not isinstance(text, str):
        raise SpecError(f"expected preprocess='window(40, 400), ...', got {text!r}")
    return parse_preprocess(text, data)


def note_on_statistics(
    name: str, card: ModelCard, options: Mapping[str, Any], default: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return a note where images are normalised as the library says, because nobody states it."""
    if "mean" in options or not default.get("mean"):
        return ()
    numbers = (", ".join(f"{v:.3g}" for v in values) for values in (card.mean, card.std))
    return (
        "images are normalised with the library's mean {} and std {} for {}: state mean=[..] and "
        "std=[..] if it was trained with others".format(*numbers, name),
    )


def contract_for(
    data: DatasetCard,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    options: Mapping[str, Any] | None = None,
    steps: Preprocess | None = None,
) -> InputContract:
    """Return the contract of a model for images of `data`."""
    stated = {key: (options or {}).get(key) for key in ("returns", "output")}
    return contract_of(
        data.channels,
        data.size,
        {"mean": mean, "std": std, **stated},
        native_range=data.native_range,
        bit_depth=data.bit_depth,
        names=data.channel_names,
        spacing=data.spacing,
        preprocess=steps,
        sizes=data.sizes,
    )
