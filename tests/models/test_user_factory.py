"""The hash of a model of a user's own file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from robustbench_med.models.user_factory import factory_of, identity, make_model

NET = """
from torch import nn
{line}

class Net(nn.Module):
    def forward(self, x):
        return prepare(x)

def make():
    return Net()
"""


def hash_of(path: Path) -> str:
    factory = factory_of(f"{path}:make")
    assert factory is not None
    return make_model(factory, ()).sha256


def test_a_module_beside_the_file_is_hashed(tmp_path: Path) -> None:
    """A function that `forward` calls is no part of the module's classes."""
    (tmp_path / "helper.py").write_text(
        "from deeper import step\ndef prepare(x): return step - x\n"
    )
    (tmp_path / "deeper.py").write_text("step = 1\n")
    (tmp_path / "unused.py").write_text("step = 1\n")
    path = tmp_path / "net.py"
    path.write_text(NET.format(line="from helper import prepare"))
    first = hash_of(path)
    assert hash_of(path) == first
    (tmp_path / "unused.py").write_text("step = 3000\n")
    assert hash_of(path) == first
    (tmp_path / "helper.py").write_text(
        "from deeper import step\ndef prepare(x): return step + x  #\n"
    )
    second = hash_of(path)
    (tmp_path / "deeper.py").write_text("step = 20\n")
    assert len({first, second, hash_of(path)}) == 3


def test_a_file_alone_keeps_its_hash(tmp_path: Path) -> None:
    """Records name this hash: that of the file's own, and of what the function makes."""
    path = tmp_path / "net.py"
    path.write_text(NET.format(line="prepare = abs"))
    factory = factory_of(f"{path}:make")
    assert factory is not None
    product = make_model(factory, ())
    hashes = (hashlib.sha256(path.read_bytes()).hexdigest(), identity(product.module))
    assert product.sha256 == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
