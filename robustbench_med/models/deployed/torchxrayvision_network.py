"""Build a network of torchxrayvision with a local weights file.

Its classifiers read grey levels -1024..1024. With their own weights they return `op_norm` of a
sigmoid, which has no gradient where it is flat; here they return the logits before both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError, UnknownNameError, VictimError
from robustbench_med.models import weights
from robustbench_med.models.deployed.network import (
    Network,
    Selected,
    check_parameters,
    first_line,
    library,
    plain_name,
    quiet,
)
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.types import Images

_SIDES = {"DenseNet": 224, "ResNet": 512}  # of the images that the published weights read
_OWN = (
    "weights",
    "unpickle",
    "side",
    "targets",
    "growth_rate",
    "block_config",
    "num_init_features",
)
_CONVERT = (
    "m = torchxrayvision.models.DenseNet(weights='densenet121-res224-all'); "
    "safetensors.torch.save_file({k: v for k, v in m.state_dict().items() if k != 'op_threshs'}, "
    "'xrv.safetensors') makes one"
)


def xray_settings(source: Deployed, seen: DatasetCard) -> dict[str, Any]:
    """Return the steps before a network of torchxrayvision, for images of a dataset."""
    side = source.parameters.get("side", _SIDES.get(source.place, 224))
    if type(side) is not int or side < 1:
        raise SpecError(f"xrv: expected side=224 or another number of pixels, got {side!r}")
    steps = []
    if seen.size != (side, side):
        steps.append(f"resize({side})")
        if len(set(seen.size)) > 1:
            steps.append(f"crop({side})")
    return {"preprocess": ", ".join([*steps, "scale(-1024, 1024)"])}


def load_xray(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return a network of torchxrayvision.

    Args:
        source: the network's class, with `weights='FILE.safetensors'`; `side`, of its images;
            `targets`, its findings for the classes of the data; and parameters of the class.
        data: its classes choose the outputs, by their names.
        shown: not used.

    Raises:
        NotInstalledError: torchxrayvision is missing.
        VictimError: the weights are missing or of another network, or a class has no output.
    """
    check_parameters("xrv", source.parameters, _OWN)
    if source.place not in _SIDES:
        raise UnknownNameError("network of torchxrayvision", source.place, tuple(_SIDES))
    file = source.parameters.get("weights")
    if not isinstance(file, str):
        raise VictimError(f"xrv:{source.place}: expected weights='FILE.safetensors': {_CONVERT}")
    with quiet():
        xrv = library("torchxrayvision", f"xrv:{source.place}")
        findings = list(xrv.datasets.default_pathologies)
        module = _built(source, xrv, len(findings))
    # thresholds of the published weights; they are switched off
    unpickle = source.parameters.get("unpickle") is True
    sha256 = weights.read(module, Path(file), unused=("op_threshs",), unpickle=unpickle)
    chosen = _chosen(source.parameters.get("targets"), findings, data)
    return Network(
        module=Selected(module.eval(), chosen),
        sha256=sha256,
        family=source.place.lower(),
        builder=f"xrv:{source.place}({chosen})",
        notes=(
            "of torchxrayvision's findings these are read: "
            + ", ".join(findings[i] for i in chosen),
            "its outputs are logits: neither its sigmoid nor its operating points are applied",
        ),
    )


def _built(source: Deployed, xrv: Any, outputs: int) -> nn.Module:  # noqa: ANN401
    keys = ("growth_rate", "block_config", "num_init_features")
    inner = {key: source.parameters[key] for key in keys if key in source.parameters}
    try:
        if source.place == "DenseNet":
            module: nn.Module = xrv.models.DenseNet(num_classes=outputs, **inner)
            return module
        from torchvision.models import resnet50

        network: nn.Module = resnet50(weights=None, num_classes=outputs, **inner)
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        return network
    except (TypeError, ValueError, RuntimeError) as error:
        raise VictimError(f"xrv:{source.place}: {first_line(error)}") from None


def _chosen(stated: object, findings: list[str], data: DatasetCard) -> list[int]:
    """Return the output of each class of the data; of two exclusive classes that of the second."""
    names = data.classes[1:] if data.binary else data.classes
    names = tuple(stated) if isinstance(stated, list) else names
    known = {plain_name(finding): i for i, finding in enumerate(findings)}
    places = [known.get(plain_name(str(name))) for name in names]
    wanted = 1 if data.binary else len(data.classes)
    lacking = [name for name, place in zip(names, places, strict=True) if place is None]
    if lacking or len(places) != wanted or data.task == "segmentation":
        listed = ", ".join(map(str, lacking or names))
        raise VictimError(
            f"xrv: expected {wanted} of its findings, got {listed}: name them in the order of the "
            f"classes, targets=['Effusion', ...]; known: {', '.join(findings)}"
        )
    return [place for place in places if place is not None]
