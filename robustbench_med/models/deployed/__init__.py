"""Models as they are deployed: ONNX, TorchScript and exported files, folders, and servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_med.cards import DatasetCard
    from robustbench_med.models.deployed.network import Network
    from robustbench_med.models.deployed.source import Deployed
    from robustbench_med.types import Images


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
    from robustbench_med.models.deployed.onnx_network import load_onnx
    from robustbench_med.models.deployed.server import load_server
    from robustbench_med.models.deployed.torch_file import load_exported, load_script

    loaders = {
        "onnx": load_onnx,
        "torchscript": load_script,
        "exported": load_exported,
        "server": load_server,
    }
    return loaders[source.kind](source, data, shown)
