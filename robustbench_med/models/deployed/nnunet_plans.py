"""Read the plans of an nnU-Net result folder, without importing what they name.

`plans.json` names Python classes. Only networks, layers and normalisations in the allow-lists here
are built; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.network import first_line, library, quiet

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_LAYERS = (
    *("Conv2d", "Conv3d", "InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    *("LeakyReLU", "ReLU", "GELU", "SiLU", "ELU", "PReLU", "Dropout2d", "Dropout3d", "Dropout"),
)
_BLOCKS = ("BasicBlockD", "BottleneckD")
SCHEMES = ("ZScore", "CT", "No", "RescaleTo01", "RGBTo01")
_SHORT = {"ct": "CT", "nonct": "ZScore", "noNorm": "No"}  # as older plans write them


@dataclass(frozen=True)
class Plan:
    """One configuration of an nnU-Net.

    Attributes:
        where: name of the folder, for messages.
        patch: sides of a window, in the network's order of axes; two of a network of slices.
        spacing: mm for each side of `patch`.
        transpose: order in which the three axes of a file are read.
        schemes: how each channel is normalised, see SCHEMES.
        masked: for each channel, whether only values other than 0 are normalised.
        intensities: for each channel, the statistics of the training images.
        network: name of the network, and its arguments.
        channels: names of the channels, in order.
        labels: name and class of each label, in the order of dataset.json; a list is a region.
        order: the class that each region gives, where there are regions.
        reader: the class that reads its files.
    """

    where: str
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    transpose: tuple[int, ...]
    schemes: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...]
    network: tuple[str, dict[str, Any]]
    channels: tuple[str, ...]
    labels: tuple[tuple[str, Any], ...]
    order: tuple[int, ...]
    reader: str

    @property
    def has_regions(self) -> bool:
        """Whether the network answers with overlapping regions, each by a sigmoid."""
        return any(isinstance(value, list) and len(value) > 1 for _, value in self.labels)

    @property
    def heads(self) -> int:
        """The number of outputs."""
        return len(self.regions) if self.has_regions else len(self.labels)

    @property
    def regions(self) -> list[str]:
        """The names of the regions, in the order of the outputs."""
        return [name for name, value in self.labels if value not in (0, [0])]


def read_plan(
    where: str, plans: dict[str, Any], dataset: dict[str, Any], configuration: str
) -> Plan:
    """Return a configuration of the plans.

    Args:
        where: name of the folder, for messages.
        plans: the content of plans.json.
        dataset: the content of dataset.json.
        configuration: its name, such as "3d_fullres".

    Raises:
        VictimError: an entry is missing or of another kind; the configuration is the second stage
            of a cascade; or it names a network, a layer or a normalisation that is not known.
    """
    try:
        stated = _inherited(plans["configurations"], configuration)
        if stated.get("previous_stage"):
            raise VictimError(
                f"{where}: expected a network that reads images alone, got {configuration}, the "
                f"second stage of a cascade, which reads the masks of {stated['previous_stage']}: "
                "use a folder of 2d, 3d_lowres or 3d_fullres"
            )
        patch = tuple(map(int, stated["patch_size"]))
        names = dataset["channel_names" if "channel_names" in dataset else "modality"]
        channels = tuple(str(names[key]) for key in sorted(names, key=int))
        properties = plans.get(
            "foreground_intensity_properties_per_channel",
            plans.get("foreground_intensity_properties_by_modality", {}),
        )
        labels = [(str(k), v) for k, v in dataset["labels"].items() if k != "ignore"]
        plan = Plan(
            where=where,
            patch=patch,
            spacing=tuple(map(float, stated["spacing"])),
            transpose=tuple(map(int, plans["transpose_forward"])),
            schemes=tuple(_scheme(where, name) for name in stated["normalization_schemes"]),
            masked=tuple(map(bool, stated["use_mask_for_norm"])),
            intensities=tuple(properties.get(str(i), {}) for i in range(len(channels))),
            network=_architecture(where, stated, len(patch)),
            channels=channels,
            labels=tuple(labels),
            order=tuple(map(int, dataset.get("regions_class_order") or ())),
            reader=str(plans.get("image_reader_writer", "")),
        )
        _check(plan, [value for _, value in labels])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise VictimError(
            f"{where}: expected plans.json and dataset.json of nnU-Net v2, got none whose "
            f"{configuration!r} can be read: {type(error).__name__}: {first_line(error)}"
        ) from None
    return plan


def _inherited(configurations: dict[str, Any], name: str, depth: int = 0) -> dict[str, Any]:
    stated: dict[str, Any] = configurations[name]
    if "inherits_from" not in stated or depth > len(configurations):
        return stated
    return _inherited(configurations, stated["inherits_from"], depth + 1) | stated


def _scheme(where: str, name: str) -> str:
    short = _SHORT.get(name, str(name).removesuffix("Normalization"))
    if short not in SCHEMES:
        known = ", ".join(f"{scheme}Normalization" for scheme in SCHEMES)
        raise VictimError(
            f"{where}: expected a normalisation in {known}, got {name!r}: state preprocess='...'"
        )
    return short


def _check(plan: Plan, values: list[Any]) -> None:
    """Raise ValueError or VictimError if the parts of a plan do not fit one another."""
    n = len(plan.channels)
    if not (len(plan.schemes) == len(plan.masked) == n and len(plan.patch) in (2, 3)):
        raise ValueError(f"{len(plan.schemes)} normalisations of {n} channels")
    if len(plan.spacing) != len(plan.patch) or sorted(plan.transpose) != [0, 1, 2]:
        raise ValueError("spacing and patch_size of other lengths")
    if min(plan.patch) < 1 or min(plan.spacing) <= 0:
        raise ValueError("patch_size and spacing must be above 0")
    for scheme, statistics in zip(plan.schemes, plan.intensities, strict=True):
        if scheme == "CT":
            for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
                float(statistics[key])
    if plan.has_regions:
        if len(plan.order) != len(plan.regions):
            raise VictimError(
                f"{plan.where}: expected regions_class_order in dataset.json, which says what "
                f"class each of its {len(plan.regions)} regions gives, got {list(plan.order)}"
            )
    elif sorted(values) != list(range(len(values))):
        raise ValueError(f"labels must be 0 to {len(values) - 1}")


def _architecture(where: str, stated: dict[str, Any], axes: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a network, of plans of today or before 2024."""
    architecture = stated.get("architecture")
    if architecture is None:
        target, arguments = str(stated["UNet_class_name"]), _before_2024(stated, axes)
        imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    else:
        target, arguments = str(architecture["network_class_name"]), architecture["arch_kwargs"]
        imported = list(architecture["_kw_requires_import"])
    name = target.rpartition(".")[2]
    if name not in NETWORKS or not target.startswith((name, "dynamic_network_architectures.")):
        raise VictimError(
            f"{where}: expected a network in {', '.join(NETWORKS)}, got {target!r}, which is not "
            "imported: build it in FILE.py:FACTORY, or export it to ONNX or TorchScript"
        )
    for key in imported:
        layer = arguments.get(key)
        if layer is not None and str(layer).rpartition(".")[2] not in (*_LAYERS, *_BLOCKS):
            raise VictimError(
                f"{where}: expected {key} in {', '.join((*_LAYERS, *_BLOCKS))}, got {layer!r}"
            )
    return name, {**arguments, "_imported": [key for key in imported if arguments.get(key)]}


def _before_2024(stated: dict[str, Any], axes: int) -> dict[str, Any]:
    """Return the arguments of a network that plans of nnU-Net 2.0 to 2.2 describe.

    Source: nnunetv2/utilities/plans_handling/plans_handler.py, which reads older plans so.
    """
    n = len(stated["n_conv_per_stage_encoder"])
    base, most = stated["UNet_base_num_features"], stated["unet_max_num_features"]
    plain = stated["UNet_class_name"] == "PlainConvUNet"
    return {
        "n_stages": n,
        "features_per_stage": [min(base * 2**i, most) for i in range(n)],
        "conv_op": f"torch.nn.Conv{axes}d",
        "kernel_sizes": stated["conv_kernel_sizes"],
        "strides": stated["pool_op_kernel_sizes"],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": stated["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": stated["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def build_network(plan: Plan) -> nn.Module:
    """Return the network of a plan with fresh weights, which answers at full size alone.

    Raises:
        NotInstalledError: dynamic_network_architectures is missing.
        VictimError: the network does not take its arguments.
    """
    unet = library("dynamic_network_architectures.architectures.unet", "an nnU-Net folder")
    blocks = library("dynamic_network_architectures.building_blocks.residual", "an nnU-Net folder")
    name, stated = plan.network
    arguments = {key: value for key, value in stated.items() if key != "_imported"}
    for key in stated["_imported"]:
        layer = str(arguments[key]).rpartition(".")[2]
        arguments[key] = getattr(blocks if layer in _BLOCKS else nn, layer)
    try:
        with quiet():
            module: nn.Module = getattr(unet, name)(
                input_channels=len(plan.channels),
                num_classes=plan.heads,
                deep_supervision=False,
                **arguments,
            )
    except Exception as error:  # a network may raise anything for a stranger's arguments
        raise VictimError(f"{plan.where}: {name}: {first_line(error)}") from None
    return module.eval()
