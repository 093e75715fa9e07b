"""Models as they are deployed: ONNX, TorchScript and exported files, folders, and servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_med.cards import DatasetCard
    from robustbench_med.models.deployed.network import Network
    from robustbench_med.models.deployed.source import Deployed
    from robustbench_med.types import Images


def settings_of(source: Deployed, seen: DatasetCard) -> dict[str, Any]:
    """Return what a deployed model says itself of how it is asked: options of a victim's spec.

    Args:
        source: the file, folder or server.
        seen: the card of the images as the model gets them, if it adds no steps of its own.

    Returns:
        Some of `mean`, `std`, `window`, `overlap`, `returns` and `preprocess`; the steps of the
        last follow those that the user states.

    Raises:
        SpecError, VictimError: its settings cannot be read.
    """
    from robustbench_med.models.deployed.huggingface import huggingface_settings
    from robustbench_med.models.deployed.monai_bundle import bundle_settings
    from robustbench_med.models.deployed.torchxrayvision_network import xray_settings

    if source.kind == "nnunet":
        return {"returns": "logits"}
    readers = {"hf": huggingface_settings, "xrv": xray_settings, "bundle": bundle_settings}
    return readers[source.kind](source, seen) if source.kind in readers else {}


def load_network(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return a deployed model as a module of PyTorch.

    Args:
        source: the file, folder or server.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised as the user states it.

    Raises:
        NotInstalledError: a library of the extra `models` is missing.
        SpecError, VictimError: the model cannot be read, or does not fit the data.
    """
    from robustbench_med.models.deployed.huggingface import load_huggingface
    from robustbench_med.models.deployed.monai_bundle import load_bundle
    from robustbench_med.models.deployed.nnunet import load_nnunet
    from robustbench_med.models.deployed.onnx_network import load_onnx
    from robustbench_med.models.deployed.server import load_server
    from robustbench_med.models.deployed.torch_file import load_exported, load_script
    from robustbench_med.models.deployed.torchxrayvision_network import load_xray

    loaders = {
        "onnx": load_onnx,
        "torchscript": load_script,
        "exported": load_exported,
        "server": load_server,
        "hf": load_huggingface,
        "xrv": load_xray,
        "bundle": load_bundle,
        "nnunet": load_nnunet,
    }
    return loaders[source.kind](source, data, shown)
