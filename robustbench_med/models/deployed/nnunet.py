"""Read an nnU-Net result folder: plans, networks of all folds, and the steps around them."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models import weights
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    ordered,
    plain_name,
    read_json,
)
from robustbench_med.models.deployed.nnunet_inference import Normalisation, WholeImages, Windows
from robustbench_med.models.deployed.nnunet_plans import Plan, build_network, read_plan
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.models.pickled import content_of
from robustbench_med.native_units import stated_range
from robustbench_med.types import Images

_OWN = ("unpickle", "folds", "checkpoint", "axes", "mirror", "step")
_OF_PLANS = ("mean", "std", "window", "overlap")  # shared parameters that the plans state
_FLAT_READERS = ("NaturalImage2DIO",)  # whose spacing is 1 and whose axes are those of a picture
_CODES = ("RL", "AP", "SI")  # by axis of a volume that is read from NIfTI: as it rises, as it falls
_NO_SPACING = 999.0  # mm, as nnU-Net takes it for the axis that a picture lacks


def load_nnunet(source: Deployed, data: DatasetCard, shown: Images) -> Network:  # noqa: ARG001
    """Return the networks of an nnU-Net folder behind its preprocessing.

    Args:
        source: the folder, with `unpickle=True` and, optionally, `folds`, `checkpoint`, `axes`,
            `mirror` and `step`.
        data: states channels, size, spacing, stored values and classes.
        shown: images of the dataset; nothing is compared on them.

    Raises:
        NotInstalledError: dynamic_network_architectures is missing.
        SpecError: a parameter is wrong.
        VictimError: the folder is incomplete or of nnU-Net v1; its checkpoints are not to be
            unpickled; it holds a network that is not known, or one that does not fit the data.
    """
    parameters = source.parameters
    check_parameters("nnunet", parameters, _OWN)
    for key in _OF_PLANS:
        if key in parameters:
            raise SpecError(f"nnunet: expected no {key}, which its plans state, got it")
    folder = source.path
    paths = _checkpoints(folder, parameters)
    checkpoints = [(path, *_checkpoint(path)) for path in paths]
    configuration, mirror, trainer = _stated(folder.name, [c for _, c, _ in checkpoints])
    plan = read_plan(
        folder.name,
        read_json(folder / "plans.json"),
        read_json(folder / "dataset.json"),
        configuration,
    )
    axes, flips = _axes(plan, data, parameters.get("axes"))
    if "preprocess" in parameters:
        normalisation = None
    else:
        _check_spacing(plan, data, axes)
        normalisation = _normalisation(plan, data)
    _check_data(plan, data)
    mirror = _mirrored(plan, parameters.get("mirror", True), mirror)
    networks, hashes = [], []
    for path, content, sha256 in checkpoints:
        network = build_network(plan)
        weights.fit(network, content["network_weights"], f"{path.parent.name}/{path.name}")
        networks.append(network)
        hashes.append(sha256)
    step = _step(parameters.get("step", 0.5))
    module = WholeImages(
        Windows(networks, plan.patch, step=step, mirror=mirror),
        normalisation,
        axes=axes,
        flips=flips,
        order=plan.order if plan.has_regions else (),
    )
    names = [name for name, _ in sorted(plan.labels, key=lambda label: str(label[1]).zfill(9))]
    reordered, notes = (module, []) if plan.has_regions else ordered(module, names, data)
    notes = [*_notes(plan, configuration, trainer, paths, mirror, step), *notes]
    answers = [*hashes, repr(plan.network), repr(normalisation), repr(plan.patch), repr(step)]
    answers += [repr((mirror, axes, flips, plan.order)), *notes]
    return Network(
        module=reordered,
        sha256=hashlib.sha256("\n".join(answers).encode()).hexdigest(),
        family="nnunet",
        builder=f"nnunet({plan.network[0]}, {configuration})",
        notes=tuple(notes),
    )


# --- the folder ----------------------------------------------------------------------------------


def _checkpoints(folder: Path, parameters: dict[str, Any]) -> list[Path]:
    """Return the checkpoints of the folds that are deployed.

    Raises:
        SpecError, VictimError: a fold is missing, or they may not be unpickled.
    """
    if not (folder / "plans.json").is_file():
        older = (folder / "plans.pkl").is_file()
        got = "a folder of nnU-Net v1, which is not read: train it with v2" if older else "none"
        raise VictimError(
            f"{folder.name}: expected a result folder of nnU-Net v2, with plans.json, dataset.json "
            f"and fold_0/checkpoint_final.pth, got {got}"
        )
    name = parameters.get("checkpoint", "checkpoint_final.pth")
    if not isinstance(name, str) or Path(name).name != name:
        raise SpecError(f"nnunet: expected checkpoint='checkpoint_final.pth', got {name!r}")
    there = {
        path.parent.name.removeprefix("fold_"): path
        for path in sorted(folder.glob(f"fold_*/{name}"))
    }
    folds = parameters.get("folds")
    if folds is None:  # nnU-Net takes the network of all data only where it is asked for
        numbered = [fold for fold in there if fold.isdecimal()]
        wanted = numbered or ["all"]
    elif isinstance(folds, list | tuple) and folds:
        wanted = [str(fold) for fold in folds]
    else:
        wanted = [str(folds)]
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise VictimError(
            f"{folder.name}: expected fold_{missing[0]}/{name}, got "
            f"{', '.join(f'fold_{fold}' for fold in there) or 'no fold with such a file'}"
        )
    if parameters.get("unpickle") is not True:
        raise VictimError(
            f"{folder.name}: expected unpickle=True, since {name} is a pickle of torch.save: "
            f"nnunet:FOLDER(unpickle=True) reads its tensors and plain values, and no code"
        )
    return [there[fold] for fold in wanted]


def _checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a checkpoint and its hash."""
    raw = weights.content(path)
    name = f"{path.parent.name}/{path.name}"
    content = content_of(name, raw)
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), dict):
        raise VictimError(f"{name}: expected a checkpoint of nnU-Net v2, got none")
    return content, hashlib.sha256(raw).hexdigest()


def _stated(where: str, checkpoints: list[dict[str, Any]]) -> tuple[str, tuple[int, ...], str]:
    """Return configuration, mirrored axes and trainer of the first fold, as nnU-Net takes them."""
    first = checkpoints[0]
    arguments = first.get("init_args")
    name = str(arguments.get("configuration", "")) if isinstance(arguments, dict) else ""
    if not re.fullmatch(r"[\w.-]{1,80}", name):
        raise VictimError(f"{where}: expected a checkpoint that names its configuration, got none")
    mirror = first.get("inference_allowed_mirroring_axes")
    mirror = tuple(mirror) if isinstance(mirror, list | tuple) else ()
    if not all(type(axis) is int and 0 <= axis < 3 for axis in mirror):
        raise VictimError(f"{where}: expected mirroring axes in 0..2, got {mirror}")
    return name, mirror, str(first.get("trainer_name", ""))[:80]


# --- what fits the data --------------------------------------------------------------------------


def _axes(plan: Plan, data: DatasetCard, stated: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which axis of a volume `(d, h, w)` each axis of the network reads, and flips.

    Raises:
        SpecError: `axes` is wrong.
        VictimError: it is not stated for volumes, or the network reads volumes and these are none.
    """
    n = len(data.size)
    if len(plan.patch) > n:
        raise VictimError(
            f"{plan.where}: expected volumes, got images of size {list(data.size)} of {data.name}"
        )
    if stated is None:
        if n == 3 or plan.reader not in _FLAT_READERS:
            raise VictimError(
                f"{plan.where}: expected axes=..., since nnU-Net reads the axes of a file in an "
                f"order of its own, got none: {_ADVICE if n == 3 else _FLAT_ADVICE}"
            )
        stated = [0, 1]
    first = 3 - n
    if isinstance(stated, str) and n == 3:
        file_axes, flips = _of_codes(stated)
    elif isinstance(stated, list | tuple) and sorted(map(repr, stated)) == list(
        map(repr, range(n))
    ):
        file_axes, flips = (*range(first), *(int(axis) + first for axis in stated)), ()
    else:
        raise SpecError(f"nnunet: expected axes: {_ADVICE if n == 3 else _FLAT_ADVICE}")
    return tuple(file_axes[axis] for axis in plan.transpose), flips


_ADVICE = (
    "axes='LPS' where the data are NIfTI files and those that it was trained on are stored as LPS "
    "(inspect prints it), or axes=[0, 1, 2] where the axes of the data are slices, rows and columns"
)
_FLAT_ADVICE = "axes=[0, 1] where the axes of the data are rows and columns, else axes=[1, 0]"


def _of_codes(codes: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return axes and flips of volumes whose axes rise to the right, front and head.

    A file whose stored axes rise towards `codes` is read by SimpleITK with its last axis first.

    >>> _of_codes("RAS"), _of_codes("LPI"), _of_codes("PSR")
    (((2, 1, 0), ()), ((2, 1, 0), (0, 1, 2)), ((0, 2, 1), (1,)))
    """
    letters = codes.upper()
    axes = [next((i for i, pair in enumerate(_CODES) if sign in pair), -1) for sign in letters]
    if sorted(axes) != [0, 1, 2]:
        raise SpecError(f"nnunet: expected axes of three letters such as 'RAS', got {codes!r}")
    flips = sorted(a for a, sign in zip(axes, letters, strict=True) if sign == _CODES[a][1])
    return tuple(reversed(axes)), tuple(flips)


def _check_spacing(plan: Plan, data: DatasetCard, axes: tuple[int, ...]) -> None:
    """Raise VictimError if nnU-Net would resample the images.

    Source: compute_new_shape of nnU-Net's preprocessing/resampling/default_resampling.py.
    """
    if plan.reader in _FLAT_READERS:
        spacing: tuple[float, ...] | None = (1.0,) * len(data.size)
    else:
        spacing = data.spacing
    wanted = " x ".join(f"{side:g}" for side in plan.spacing)
    if spacing is None:
        raise VictimError(
            f"{plan.where}: expected images of a known spacing, since the network reads {wanted} "
            f"mm, got none of {data.name}: state spacing in its card or in info, or "
            "preprocess='...' if they have been resampled and normalised"
        )
    missing = 3 - len(data.size)
    sides, size = (*[_NO_SPACING] * missing, *spacing), (*[1] * missing, *data.size)
    sides, size = tuple(sides[axis] for axis in axes), tuple(size[axis] for axis in axes)
    target = (*sides[: 3 - len(plan.spacing)], *plan.spacing)
    resampled = [round(s / t * n) for s, t, n in zip(sides, target, size, strict=True)]
    if any(new != n for new, n in zip(resampled, size, strict=True)):
        given = " x ".join(f"{side:g}" for side in sides[3 - len(plan.spacing) :])
        raise VictimError(
            f"{plan.where}: expected a spacing of {wanted} mm, to which nnU-Net resamples, got "
            f"{given} mm of {data.name} in its order of axes: resample the dataset, or check axes="
        )


def _normalisation(plan: Plan, data: DatasetCard) -> Normalisation:
    if data.preprocess:
        raise VictimError(
            f"{plan.where}: expected stored values, which nnU-Net normalises itself, got "
            f"preprocess={data.preprocess!r} of {data.name}: leave it out of the card"
        )
    native = stated_range(data)
    if native is None:
        raise VictimError(
            f"{plan.where}: expected images whose stored values are known, got {data.native_range}:"
            f" state native for {data.name}, or preprocess='none' if they are normalised"
        )
    if "RGBTo01" in plan.schemes and (native.low, native.high) != (0, 255):
        raise VictimError(
            f"{plan.where}: expected grey levels 0..255, got a range of {native.text}"
        )
    return Normalisation(plan.schemes, plan.masked, plan.intensities, native.low, native.high)


def _check_data(plan: Plan, data: DatasetCard) -> None:
    """Raise VictimError if channels or classes differ."""
    if len(plan.channels) != data.channels:
        raise VictimError(
            f"{plan.where}: expected {len(plan.channels)} channels ({', '.join(plan.channels)}), "
            f"got {data.channels} of {data.name}"
        )
    mine, theirs = map(plain_name, plan.channels), map(plain_name, data.channel_names)
    pairs = list(zip(mine, theirs, strict=False))
    if sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) and any(a != b for a, b in pairs):
        raise VictimError(
            f"{plan.where}: expected the channels {', '.join(plan.channels)} in this order, got "
            f"{', '.join(data.channel_names)} of {data.name}"
        )
    k = len(data.classes)
    classes = [0, *plan.order] if plan.has_regions else range(len(plan.labels))
    if sorted(classes) != list(range(k)):
        raise VictimError(
            f"{plan.where}: expected masks of {len(classes)} classes, got {k} of {data.name}"
        )


def _mirrored(plan: Plan, stated: object, allowed: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(stated, bool):
        raise SpecError(f"nnunet: expected mirror=True or mirror=False, got {stated!r}")
    if stated and any(axis >= len(plan.patch) for axis in allowed):
        raise VictimError(f"{plan.where}: expected mirroring axes of its windows, got {allowed}")
    return tuple(allowed) if stated else ()


def _step(stated: object) -> float:
    if not isinstance(stated, int | float) or isinstance(stated, bool) or not 0.05 <= stated <= 1:
        raise SpecError(f"nnunet: expected step in [0.05,1], got {stated!r}")
    return float(stated)


def _notes(
    plan: Plan,
    configuration: str,
    trainer: str,
    paths: list[Path],
    mirror: tuple[int, ...],
    step: float,
) -> list[str]:
    folds = ", ".join(path.parent.name for path in paths)
    mean = "the logits of its folds are averaged: " if len(paths) > 1 else "its fold: "
    sides = " x ".join(map(str, plan.patch))
    flips = math.prod([2] * len(mirror))
    notes = [
        f"{configuration} of nnU-Net; {mean}{folds}",
        f"the network reads windows of {sides}, {step:g} of a side apart at most, "
        + (f"each mirrored in {flips} ways" if mirror else "and none is mirrored"),
    ]
    if trainer not in ("", "nnUNetTrainer"):
        notes.append(
            f"it was trained by {trainer}, which is not executed: the network is that of its plans"
        )
    if plan.has_regions:
        notes.append(
            f"its regions {', '.join(plan.regions)} are turned into classes in the order of "
            "regions_class_order"
        )
    return notes
