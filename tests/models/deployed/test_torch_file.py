"""TorchScript archives and files of torch.export: known answers, and nothing executed."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_med as rm
from robustbench_med.errors import BenchError, VictimError
from robustbench_med.models.load import load_victim
from robustbench_med.models.source import executes_code
from tests.models.truth import CLEAN, SCORES, SIDE, W, X, Y, findings, labels, masks

EPS = 0.003
EXACT = float(((SCORES.abs() > EPS * W.abs().sum()) & ((SCORES > 0) == (Y == 1))).float().mean())


@pytest.fixture(autouse=True)
def _deprecated() -> Iterator[None]:
    """Make archives although torch deprecates TorchScript; loading them must not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


class Scripted(nn.Module):
    """The linear model with known answers, in a form that torch.jit compiles."""

    def __init__(self, k: int = 2, end: str = "", scale: float = 1.0) -> None:
        super().__init__()
        heads = {1: [W], 2: [-W / 2, W / 2], 3: [W, -W, W]}
        self.w = nn.Parameter(scale * torch.stack(heads[k]).clone())
        self.end = {"softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid(), "": nn.Identity()}[end]

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.end((x.flatten(1) - 0.5) @ self.w.T)
        return z


class Coloured(nn.Module):
    """The score of each pixel for two classes, behind a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        z = 5 * (x - 0.5)
        return torch.cat([-z, z], 1).softmax(1)


def traced(module: nn.Module, path: Path, n: int = 2) -> Path:
    torch.jit.save(torch.jit.trace(module.eval(), X[:n]), path)
    return path


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def exported(module: nn.Module, path: Path, *, n: int = 2, any_batch: bool = True) -> Path:
    batch = {"x": {0: torch.export.Dim("n", min=1, max=256)}} if any_batch else None
    torch.export.save(torch.export.export(module.eval(), (X[:n],), dynamic_shapes=batch), path)
    return path


def margin(logits: Tensor) -> Tensor:
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


MAKERS: dict[str, Callable[[nn.Module, Path], Path]] = {
    "traced": traced,
    "scripted": scripted,
    "exported": exported,
}


def spec(make: str, path: Path) -> str:
    return f"exported:{path}(run_code=True)" if make == "exported" else f"torchscript:{path}"


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("k", "end", "scale"),
    [(2, "", 1), (1, "", 1), (2, "softmax", 1), (1, "sigmoid", 1), (2, "softmax", 1000)],
)
def test_logits_and_gradients_are_those_of_the_network(
    tmp_path: Path, make: str, k: int, end: str, scale: float
) -> None:
    path = MAKERS[make](Scripted(k, end, scale), tmp_path / "m.pt")
    model = rm.load_model(spec(make, path), dataset=labels())
    x = X.clone().requires_grad_(True)
    logits = model(x).logits
    torch.testing.assert_close(margin(logits), scale * SCORES, rtol=1e-4, atol=1e-4)
    (g,) = torch.autograd.grad(margin(logits).sum(), x)
    expected = scale * W.expand(len(X), -1)
    torch.testing.assert_close(g.flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert any(f"ends in a {end}: logits" in note for note in model.card.notes) == bool(end)
    assert model.card.returns == "logits"


class Behind(nn.Module):
    """A function behind a module."""

    def __init__(self, inner: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, last

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(self.inner(x))
        return z


@pytest.mark.parametrize("make", MAKERS)
def test_two_functions_in_a_row(tmp_path: Path, make: str) -> None:
    twice = Behind(Scripted(2, "softmax", 1000), nn.Softmax(1))
    model = rm.load_model(spec(make, MAKERS[make](twice, tmp_path / "m.pt")), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), 1000 * SCORES, rtol=1e-4, atol=1e-3)
    assert any("ends in a softmax and then a softmax: logits are" in n for n in model.card.notes)
    path = MAKERS[make](Behind(Scripted(1, "sigmoid"), nn.Sigmoid()), tmp_path / "s.pt")
    with pytest.raises(BenchError, match="got a sigmoid and then a sigmoid, behind which every"):
        rm.load_model(spec(make, path), dataset=labels())


class Scaled(nn.Module):
    """A scale behind a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scripted(2, "softmax")

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = 7 * self.inner(x)
        return z


@pytest.mark.parametrize("make", MAKERS)
def test_a_scale_behind_a_softmax(tmp_path: Path, make: str) -> None:
    path = MAKERS[make](Scaled(), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="got a softmax and then a scale, behind which gradients"):
        rm.load_model(spec(make, path), dataset=labels())
    kind, code = ("exported", ", run_code=True") if make == "exported" else ("torchscript", "")
    taken = rm.load_model(f"{kind}:{path}(returns='logits'{code})", dataset=labels())
    torch.testing.assert_close(taken(X).logits, Scaled()(X))


@pytest.mark.parametrize("make", ["traced", "exported"])
def test_a_whole_run(tmp_path: Path, make: str) -> None:
    path = MAKERS[make](Scripted(2, "softmax"), tmp_path / "m.pt")
    result = rm.evaluate(
        spec(make, path), labels(), "pgd(steps=10)", eps=EPS, operating_point="argmax"
    )
    assert result.clean == pytest.approx(CLEAN)
    assert result.accuracy == pytest.approx(EXACT)
    assert not result.flags


def test_a_guide_of_half_precision(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eps": EPS, "operating_point": "argmax", "guide": "bfloat16"}
    path = exported(Scripted(2, "softmax"), tmp_path / "m.pt2")
    result = rm.evaluate(spec("exported", path), labels(), "pgd(steps=5)", **options)
    assert result.accuracy == pytest.approx(EXACT)
    path = traced(Scripted(2), tmp_path / "m.pt")
    with pytest.raises(BenchError, match="expected --guide float32 with a TorchScript archive"):
        rm.evaluate(str(path), labels(), "pgd(steps=5)", **options)


def test_a_record_of_a_stranger_runs_no_code_unasked() -> None:
    assert executes_code("exported:m.pt2(run_code=True)")
    assert executes_code("http://host/v2/models/m")  # nor does it ask a server
    assert not executes_code("torchscript:m.pt")
    assert not executes_code("model.onnx(mean=[0.5])")


def test_layers_in_a_sequence(tmp_path: Path) -> None:
    """Torch writes getattr into the code of a sequence."""
    module = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(SIDE * SIDE, 2)))
    model = rm.load_model(str(traced(module, tmp_path / "m.pt")), dataset=labels())
    torch.testing.assert_close(model(X).logits, module(X), rtol=1e-4, atol=1e-4)


def test_findings_and_masks(tmp_path: Path) -> None:
    path = traced(Scripted(3, "sigmoid"), tmp_path / "f.ts")
    logits = rm.load_model(str(path), dataset=findings())(X).logits
    expected = torch.stack([SCORES, -SCORES, SCORES], 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    path = scripted(Coloured(), tmp_path / "m.ts")
    logits = rm.load_model(str(path), dataset=masks())(X[:8]).logits
    torch.testing.assert_close(margin(logits), 10 * (X[:8, 0] - 0.5), rtol=1e-4, atol=1e-4)


def test_a_batch_that_was_traced_in(tmp_path: Path) -> None:
    class Baked(Scripted):
        def forward(self, x: Tensor) -> Tensor:
            return (x.reshape(1, SIDE * SIDE) - 0.5) @ self.w.T

    path = traced(Baked(2), tmp_path / "m.pt", n=1)
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)
    assert any("one image at a time" in note for note in model.card.notes)


def test_an_exported_batch_of_four(tmp_path: Path) -> None:
    path = exported(Scripted(2), tmp_path / "m.pt2", n=4, any_batch=False)
    model = rm.load_model(f"{path}(run_code=True)", dataset=labels())
    for n in (1, 4, 6):
        torch.testing.assert_close(margin(model(X[:n]).logits), SCORES[:n], rtol=1e-4, atol=1e-4)
    assert any("takes 4 images at once" in note for note in model.card.notes)


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = traced(Scripted(2), tmp_path / "m.pt")
    first = load_victim(str(path), labels().card)
    assert load_victim(str(path), labels().card).sha256 == first.sha256
    traced(Scripted(2, scale=2), path)
    assert load_victim(str(path), labels().card).sha256 != first.sha256


# --- hostile files --------------------------------------------------------------------------------


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:  # noqa: ANN401
        return (Path.touch, (self.path,))


def rezipped(path: Path, name: str, content: bytes) -> Path:
    """Replace one member of an archive, or add it."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    (root,) = {entry.partition("/")[0] for entry in members}
    members[f"{root}/{name}"] = content
    with zipfile.ZipFile(path, "w") as archive:
        for entry, value in members.items():
            archive.writestr(entry, value)
    return path


def test_pickles_are_never_read_by_python(tmp_path: Path) -> None:
    planted = tmp_path / "executed"
    evil = pickle.dumps(Evil(planted), protocol=2)
    for member in ("data.pkl", "constants.pkl"):
        path = rezipped(traced(Scripted(2), tmp_path / "m.pt"), member, evil)
        with pytest.raises(VictimError, match="expected a TorchScript archive that torch"):
            load_victim(str(path), labels().card)
    torch.save({"w": torch.zeros(2), "evil": Evil(planted)}, tmp_path / "w.pt")
    with pytest.raises(VictimError, match="got a pickle of torch.save, which may run code"):
        load_victim(str(tmp_path / "w.pt"), labels().card)
    (tmp_path / "old.pt").write_bytes(evil)
    with pytest.raises(VictimError, match="got a pickle of torch.save"):
        load_victim(f"torchscript:{tmp_path / 'old.pt'}", labels().card)
    path = rezipped(exported(Scripted(2), tmp_path / "m.pt2"), "data/weights/weight_0", evil)
    with pytest.raises(VictimError, match=r"write 'exported:.*m\.pt2\(run_code=True\)'"):
        load_victim(str(path), labels().card)
    assert not planted.exists()


@pytest.mark.parametrize("way", ["save", "alias", "getattr", "escape", "plain", "from_file"])
def test_code_that_reaches_files_is_refused(tmp_path: Path, way: str) -> None:
    path, planted = tmp_path / "m.pt", tmp_path / "written"

    class Writer(Scripted):
        def __init__(self) -> None:
            super().__init__(2)
            self.place = str(planted)

        def forward(self, x: Tensor) -> Tensor:
            torch.save(x, self.place)
            return (x.flatten(1) - 0.5) @ self.w.T

    scripted(Writer(), path)
    with zipfile.ZipFile(path) as archive:
        name = next(
            n for n in archive.namelist() if n.endswith(".py") and b"save" in archive.read(n)
        )
        code = archive.read(name).decode()
    line = next(line for line in code.splitlines() if "save" in line)
    arguments = line[line.index("(") :]
    indent = line[: len(line) - len(line.lstrip())]
    other = {
        "save": f"torch . save{arguments}",
        "alias": f"t = torch\n{indent}_9 = t.save{arguments}",
        "getattr": f'_9 = getattr(torch, "sa" "ve"){arguments}',
        "escape": f'_9 = getattr(torch, "sa\\x76e"){arguments}',
        "plain": f'_9 = getattr(torch, "save"){arguments}',
        "from_file": '_9 = torch.from_file("f", True, 4)',
    }[way]
    changed = code.replace(line, f"{indent}{other}")
    rezipped(path, name.partition("/")[2], changed.encode())
    with pytest.raises(VictimError, match="expected code that reaches no files"):
        load_victim(str(path), labels().card)
    assert not planted.exists()


def test_the_code_would_write_without_the_check(tmp_path: Path) -> None:
    """The operator that is refused does what the check is for."""

    class Writer(nn.Module):
        def __init__(self, place: str) -> None:
            super().__init__()
            self.place = place

        def forward(self, x: Tensor) -> Tensor:
            torch.save(x, self.place)
            return x

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Writer(str(tmp_path / "written"))), buffer)
    buffer.seek(0)
    torch.jit.load(buffer)(X[:1])
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_cut_archives(tmp_path: Path, size: int) -> None:
    path = traced(Scripted(2), tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BenchError) as error:
        load_victim(str(path), labels().card)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_med.models.deployed import script_archive

    monkeypatch.setattr(script_archive, "LARGEST", 1000)
    with pytest.raises(VictimError, match="expected an archive of at most"):
        load_victim(str(traced(Scripted(2), tmp_path / "m.pt")), labels().card)


def test_another_size_is_one_line(tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(99, 2)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.head(x.flatten(1))
            return z

    path = scripted(Other(), tmp_path / "m.pt")
    with pytest.raises(
        VictimError, match=r"expected a network that reads \(1, 16, 16\) images"
    ) as e:
        load_victim(str(path), labels().card)
    assert "\n" not in str(e.value)
