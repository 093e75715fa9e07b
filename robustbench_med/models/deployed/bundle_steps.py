"""Read the steps of a MONAI bundle before and after its network, without executing them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.native_units import stated_range
from robustbench_med.types import Images

if TYPE_CHECKING:
    from robustbench_med.models.deployed.monai_bundle import Bundle

# transforms that read files or change types, which the dataset has done
_DONE = {
    *("LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor"),
    *("CastToType", "ToDevice", "DeleteItems", "SelectItems", "Identity"),
}
_SPACING_SLACK = 0.05  # relative difference of a spacing that is said and not refused


@dataclass(frozen=True)
class Statistics:
    """Which statistics of an image itself it is normalised with.

    Attributes:
        kind: "deviations" from its mean in units of its standard deviation, or its "range" to
            `[low, high]`.
        nonzero: whether values of 0 neither count nor change.
        by_channel: whether each channel has its own.
        low, high: the range.
    """

    kind: Literal["deviations", "range"]
    nonzero: bool = False
    by_channel: bool = False
    low: float = 0.0
    high: float = 1.0


class Standardised(nn.Module):
    """A network behind a normalisation by an image's own statistics, as MONAI computes them.

    Args:
        inner: the network.
        statistics: which ones.

    Source: monai.transforms.NormalizeIntensity and ScaleIntensity.
    """

    def __init__(self, inner: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.inner, self.statistics = inner, statistics

    def forward(self, x: Images) -> Any:  # noqa: ANN401 - what the network returns
        """Return the outputs of the network for normalised images."""
        return self.inner(self.normalised(x))

    def normalised(self, x: Images) -> Images:
        """Return images normalised by their own statistics."""
        s = self.statistics
        axes = tuple(range(2 if s.by_channel else 1, x.ndim))
        if s.kind == "range":
            low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
            scaled = (x - low) / (high - low).clamp_min(1e-12)
            return scaled * (s.high - s.low) + s.low
        counts = (x != 0) if s.nonzero else torch.ones_like(x, dtype=torch.bool)
        n = counts.sum(axes, keepdim=True).clamp_min(1)
        mean = (x * counts).sum(axes, keepdim=True) / n
        variance = (((x - mean) * counts) ** 2).sum(axes, keepdim=True) / n
        # MONAI divides by 1 where all values are equal
        std = torch.where(variance > 0, variance.clamp_min(1e-24).sqrt(), 1.0)
        return torch.where(counts, (x - mean) / std, x)


@dataclass
class BundleSteps:
    """The steps of a bundle, as far as they are read.

    Attributes:
        chain: steps of a preprocess, see models/preprocess.py.
        statistics: the normalisation by an image's own statistics; None = none.
        window: the window of the inferer; None = whole images.
        overlap: of windows.
        blend: weights where windows overlap; MONAI's default is "constant".
        scaled: whether a step has changed the stored values.
        notes: what is said about them.
    """

    chain: list[str] = field(default_factory=list)
    statistics: Statistics | None = None
    window: tuple[int, ...] | None = None
    overlap: float = 0.25
    blend: Literal["gaussian", "constant"] = "constant"
    scaled: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The steps as options of a victim's spec."""
        return {"preprocess": ", ".join(self.chain)} if self.chain else {}


def read_steps(bundle: Bundle, data: DatasetCard, *, known: bool = True) -> BundleSteps:
    """Return the steps of a bundle.

    Args:
        bundle: its configuration.
        data: the card of the images.
        known: whether the steps before the network must be known.

    Raises:
        VictimError: a step is not known, or does not fit the images.
    """
    steps = BundleSteps()
    for name, arguments in _transforms(bundle, "preprocessing", "pre_transforms"):
        if not known or name in _DONE:
            continue
        if name not in _READERS:
            raise VictimError(
                f"{bundle.where}: expected known steps before the network, got {name}: write what "
                "it does as preprocess='...', or preprocess='none' if your images have been through"
                " it"
            )
        if steps.statistics is not None and name != "Spacing":
            raise VictimError(f"{bundle.where}: expected no {name} after a normalisation, got it")
        _READERS[name](bundle, steps, arguments, data)
    _read_post(bundle, data)
    _read_inferer(bundle, steps, data)
    return steps


def _transforms(bundle: Bundle, *names: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of transforms, without the ending of dictionary forms."""
    part = bundle.part(*names)
    if isinstance(part, dict):
        part = part.get("transforms", [])
    part = bundle.literal(part) if isinstance(part, str) and part.startswith("@") else part
    listed = []
    for item in part if isinstance(part, list) else []:
        if isinstance(item, str) and item.startswith("@"):
            item = bundle.at(item[1:])
        if not isinstance(item, dict) or item.get("_disabled_") is True:
            continue
        name = str(item.get("_target_", "")).rpartition(".")[2]
        listed.append((name.removesuffix("d"), item))
    return listed


def _numbers(bundle: Bundle, arguments: dict[str, Any], key: str, default: Any = None) -> Any:  # noqa: ANN401
    return bundle.literal(arguments.get(key, default))


def _intensity_range(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    a, b, low, high = (
        _numbers(bundle, arguments, key) for key in ("a_min", "a_max", "b_min", "b_max")
    )
    low, high = (0.0 if low is None else low), (1.0 if high is None else high)
    if not all(isinstance(v, int | float) for v in (a, b, low, high)):
        raise VictimError(f"{bundle.where}: expected numbers in ScaleIntensityRange, got others")
    if steps.scaled:
        raise VictimError(
            f"{bundle.where}: expected no ScaleIntensityRange of scaled values, got it"
        )
    steps.scaled = True
    native = stated_range(data)
    # images of an unknown range that are scaled from 0..255 are taken for grey levels
    grey = (0.0, 255.0) if native is None else (native.low, native.high)
    if data.native is None and (float(a), float(b)) == (0.0, 255.0) == grey:
        if native is None:
            steps.notes.append("values of unknown range are taken for grey levels 0..255 in [0,1]")
    elif _numbers(bundle, arguments, "clip", False):
        steps.chain.append(f"window(low={a:g}, high={b:g})")
    else:
        steps.chain += ["native()", f"normalise({a:g}, {b - a:g})"]
    if (float(low), float(high)) != (0.0, 1.0):
        steps.chain.append(f"scale({low:g}, {high:g})")


def _normalize(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    mean, std = (_numbers(bundle, arguments, key) for key in ("subtrahend", "divisor"))
    if mean is None and std is None:
        steps.statistics = Statistics(
            "deviations",
            nonzero=bool(_numbers(bundle, arguments, "nonzero", False)),
            by_channel=bool(_numbers(bundle, arguments, "channel_wise", False)),
        )
        if steps.statistics.nonzero and data.native is not None and data.native.low != 0:
            raise VictimError(
                f"{bundle.where}: expected images whose background is stored as 0 for a "
                f"normalisation of other values, got a range of {data.native_range}"
            )
        steps.notes.append("each image is normalised by its own mean and standard deviation")
        return
    if mean is None or std is None or _numbers(bundle, arguments, "nonzero", False):
        raise VictimError(
            f"{bundle.where}: expected NormalizeIntensity of all pixels with both subtrahend and "
            f"divisor, or neither, got subtrahend {mean}, divisor {std} and nonzero "
            f"{arguments.get('nonzero', False)}: state preprocess='...'"
        )
    if not steps.scaled:  # MONAI reads stored values, which are [0,1] here
        if stated_range(data) is None:
            raise VictimError(
                f"{bundle.where}: expected images whose stored values are known, from which "
                f"NormalizeIntensity takes {mean}, got {data.native_range}: state native for "
                f"{data.name}, or preprocess='normalise({mean}, {std})' if they are these values"
            )
        steps.chain.append("native()")
        steps.scaled = True
    steps.chain.append(f"normalise({mean}, {std})")


def _scale(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    low, high = (
        _numbers(bundle, arguments, k, default) for k, default in (("minv", 0.0), ("maxv", 1.0))
    )
    if low is None or high is None or arguments.get("factor") is not None:
        raise VictimError(f"{bundle.where}: expected ScaleIntensity with minv and maxv, got others")
    by_channel = bool(_numbers(bundle, arguments, "channel_wise", False))
    steps.statistics = Statistics("range", by_channel=by_channel, low=float(low), high=float(high))
    steps.notes.append("each image is scaled by its own smallest and largest value")


def _resize(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    size = _numbers(bundle, arguments, "spatial_size")
    sides = size if isinstance(size, list) else [size] * len(data.size)
    if list(data.size) != sides:
        steps.chain.append(f"resize({', '.join(map(str, sides))}, antialias=False)")


def _spacing(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    pixdim = _numbers(bundle, arguments, "pixdim")
    wanted = pixdim if isinstance(pixdim, list) else [pixdim] * len(data.size)
    text = " x ".join(f"{side:g}" for side in wanted)
    if data.spacing is None:
        steps.notes.append(f"the bundle expects a spacing of {text} mm; that of the images is open")
        return
    same = len(wanted) == len(data.spacing) and all(
        math.isclose(a, b, rel_tol=_SPACING_SLACK)
        for a, b in zip(sorted(wanted), sorted(data.spacing), strict=True)
    )
    if not same:
        given = " x ".join(f"{side:g}" for side in data.spacing)
        raise VictimError(
            f"{bundle.where}: expected a spacing of {text} mm, which its Spacing makes, got "
            f"{given} mm of {data.name}: resample the dataset, or state preprocess='resize(...)'"
        )


def _orientation(
    bundle: Bundle, steps: BundleSteps, arguments: dict[str, Any], data: DatasetCard
) -> None:
    codes = _numbers(bundle, arguments, "axcodes")
    steps.notes.append(f"the bundle expects the orientation {codes}; images are taken as they lie")


_Reader = Callable[["Bundle", BundleSteps, dict[str, Any], DatasetCard], None]
_READERS: dict[str, _Reader] = {
    "ScaleIntensityRange": _intensity_range,
    "NormalizeIntensity": _normalize,
    "ScaleIntensity": _scale,
    "Resize": _resize,
    "Spacing": _spacing,
    "Orientation": _orientation,
}


def _read_post(bundle: Bundle, data: DatasetCard) -> None:
    """Raise VictimError if a bundle reads its outputs otherwise than by the largest logit."""
    for name, arguments in _transforms(bundle, "postprocessing", "post_transforms"):
        if name != "Activations" or data.task != "segmentation":
            continue
        if bundle.literal(arguments.get("sigmoid")) is True and 1 not in data.outputs:
            raise VictimError(
                f"{bundle.where}: expected masks of exclusive classes, got a network of several "
                "sigmoids, whose regions overlap: use FILE.py:FACTORY"
            )


def _read_inferer(bundle: Bundle, steps: BundleSteps, data: DatasetCard) -> None:
    inferer = bundle.part("inferer")
    if not isinstance(inferer, dict):
        return
    if not str(inferer.get("_target_", "")).endswith("SlidingWindowInferer"):
        return
    roi = bundle.literal(inferer.get("roi_size"))
    sides = roi if isinstance(roi, list) else [roi] * len(data.size)
    if len(sides) != len(data.size) or not all(isinstance(side, int) for side in sides):
        raise VictimError(
            f"{bundle.where}: expected a window of {len(data.size)} sides, got {roi!r}"
        )
    if any(side > whole for side, whole in zip(sides, data.size, strict=True)):
        steps.notes.append("images smaller than the bundle's window are read as they are")
    window = tuple(
        side if 0 < side < whole else whole for side, whole in zip(sides, data.size, strict=True)
    )
    overlap = bundle.literal(inferer.get("overlap", 0.25))
    steps.overlap = float(overlap) if isinstance(overlap, int | float) else 0.25
    steps.window = None if window == tuple(data.size) else window
    blend = bundle.literal(inferer.get("mode", "constant"))
    if blend not in ("gaussian", "constant") or inferer.get("sigma_scale", 0.125) != 0.125:
        raise VictimError(
            f"{bundle.where}: expected windows blended by mode gaussian (sigma_scale 0.125) or "
            f"constant, got {blend!r}: use FILE.py:FACTORY"
        )
    steps.blend = blend
