"""Files of torch.save: refused, unless the user says so by name, and then tensors alone."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from robustbench_med.errors import BenchError
from robustbench_med.models import pickled
from robustbench_med.models.load import load_victim
from robustbench_med.victim import frozen
from tests.models.truth import SIDE, X, labels


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:  # noqa: ANN401
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    module: torch.nn.Module = timm.create_model("test_resnet", in_chans=1, num_classes=2).eval()
    return module


def spec(path: Path) -> str:
    return f"timm:test_resnet(weights='{path}', unpickle=True, mean=[0.0], std=[1.0])"


@pytest.mark.parametrize("entry", ["", "state_dict", "model", "network_weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_where_it_is_allowed(
    tmp_path: Path, network: torch.nn.Module, entry: str, zipped: bool
) -> None:
    state = OrderedDict((f"module.{k}", v) for k, v in network.state_dict().items())
    content = {entry: state, "epoch": 3, "best": 0.5} if entry else state
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_victim(spec(path), labels().card)
    with torch.no_grad(), frozen(loaded.victim.module):
        torch.testing.assert_close(loaded.victim.logits(X[:4]), network(X[:4]))
    with pytest.raises(BenchError, match="unpickle=True beside weights="):
        load_victim(f"timm:test_resnet(weights='{path}')", labels().card)
    assert X.shape[-1] == SIDE


def test_nothing_is_executed(
    tmp_path: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, planted = tmp_path / "w.pth", tmp_path / "executed"

    def refused(message: str) -> None:
        with pytest.raises(BenchError, match=message) as error:
            load_victim(spec(path), labels().card)
        assert "\n" not in str(error.value)
        assert not planted.exists()

    torch.save({"state_dict": network.state_dict(), "evil": Evil(planted)}, path)
    refused("expected a state dict of tensors alone")
    path.write_bytes(pickle.dumps(Evil(planted), protocol=2))
    refused("expected a state dict of tensors alone")
    torch.save(network, path)  # a whole network
    refused("expected a state dict of tensors alone")
    torch.save([1, 2], path)
    refused("expected a state dict, got list")
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    refused("expected a file of torch.save, got one that is cut")
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(pickled, "LARGEST", 1000)
    refused("expected at most 0 GiB")
