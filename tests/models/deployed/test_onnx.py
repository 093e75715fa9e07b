"""ONNX files: the same logits and gradients as the network, or queries, or one line."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx2torch
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import robustbench_med as rm
from robustbench_med import cli
from robustbench_med.errors import BenchError, VictimError
from robustbench_med.models.deployed.source import deployed_of
from robustbench_med.models.load import load_victim
from robustbench_med.models.source import resolve_model
from tests.bench.toys import save_npz
from tests.models.deployed.files import HEADS, edited, truth
from tests.models.truth import CLEAN, SCORES, SIDE, W, X, Y, findings, labels, masks

EPS = 0.003
EXACT = float(((SCORES.abs() > EPS * W.abs().sum()) & ((SCORES > 0) == (Y == 1))).float().mean())


class CommandResult(NamedTuple):
    code: int
    out: str
    err: str


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> CommandResult:
    """Run a command in this process."""
    monkeypatch.setattr(sys, "argv", ["robustbench_med", *words])
    monkeypatch.setenv("COLUMNS", "200")
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return CommandResult(code, *capsys.readouterr())


def margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize(
    ("k", "endings"),
    [
        (2, ()),
        (1, ()),
        (2, ("Softmax",)),
        (1, ("Sigmoid",)),
        (2, ("Softmax", "Identity")),
        (1, ("Sigmoid", "Identity", "Identity")),
    ],
)
def test_logits_come_from_before_a_softmax_or_sigmoid(
    tmp_path: Path, k: int, endings: tuple[str, ...]
) -> None:
    data, path = labels(), truth(tmp_path / "m.onnx", k, *endings)
    model = rm.load_model(f"onnx:{path}", dataset=data)
    x = X.clone().requires_grad_(True)
    logits = model(x).logits
    torch.testing.assert_close(margin(logits), SCORES, rtol=1e-4, atol=1e-4)
    (g,) = torch.autograd.grad(margin(logits).sum(), x)
    torch.testing.assert_close(g.flatten(1), W.expand(len(X), -1), rtol=1e-5, atol=1e-5)
    said = [note for note in model.card.notes if "logits are taken from before it" in note]
    assert len(said) == bool(endings)
    assert model.card.returns == "logits"
    assert not model.card.queries_only
    result = rm.evaluate(f"onnx:{path}", data, "pgd(steps=10)", eps=EPS, operating_point="argmax")
    assert result.accuracy == pytest.approx(EXACT)
    assert result.clean == pytest.approx(CLEAN)
    assert not result.flags  # its probabilities cost it its rank before
    record = result.records[0].record
    assert set(model.card.notes) <= set(record.notes)


def test_two_softmaxes_in_a_row(tmp_path: Path) -> None:
    path = truth(tmp_path / "m.onnx", 2, "Softmax", "Identity", "Softmax")
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)
    assert any("ends in a softmax and then a softmax" in note for note in model.card.notes)
    assert not model.card.queries_only
    for k, data in ((3, findings()), (1, labels())):
        path = truth(tmp_path / f"{k}.onnx", k, "Sigmoid", "Sigmoid")
        with pytest.raises(BenchError, match="got a sigmoid and then a sigmoid, behind which ever"):
            rm.load_model(str(path), dataset=data)


def test_a_saturated_softmax_hides_no_gradient(tmp_path: Path) -> None:
    def steep(model: Any) -> None:  # noqa: ANN401
        weights = next(t for t in model.graph.initializer if t.name == "w")
        weights.raw_data = (HEADS[2] * 1000).astype(np.float32).tobytes()

    path = edited(truth(tmp_path / "m.onnx", 2, "Softmax"), steep)
    result = rm.evaluate(str(path), labels(), "pgd(steps=10)", eps=EPS, operating_point="argmax")
    assert result.accuracy == pytest.approx(EXACT)
    assert not result.flags


def test_findings_end_in_sigmoids(tmp_path: Path) -> None:
    path = truth(tmp_path / "m.onnx", 3, "Sigmoid")
    logits = rm.load_model(str(path), dataset=findings())(X).logits
    expected = torch.stack([SCORES, -SCORES, SCORES], 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "last"), [(1, False), (3, False), (64, True), ("n", True)])
def test_fixed_batches_and_channels_last(tmp_path: Path, batch: int | str, last: bool) -> None:
    path = truth(tmp_path / "m.onnx", 2, "Softmax", batch=batch, last=last)
    model = rm.load_model(str(path), dataset=labels())
    for n in (1, 2, 7, 40):
        torch.testing.assert_close(margin(model(X[:n]).logits), SCORES[:n], rtol=1e-4, atol=1e-4)
    assert any("channels last" in note for note in model.card.notes) == last
    assert any("at once" in note for note in model.card.notes) == (batch in (3, 64))


def test_a_shape_of_one_image_inside_is_asked_alone(tmp_path: Path) -> None:
    def frozen(model: Any) -> None:  # noqa: ANN401
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([1, SIDE * SIDE], np.int64), "one")
        )
        model.graph.node[0].op_type = "Reshape"
        model.graph.node[0].input.append("one")

    path = edited(truth(tmp_path / "m.onnx"), frozen)
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)
    assert any("one image at a time" in note for note in model.card.notes)


def test_masks_with_the_classes_last(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "half"], ["c"]),
        node("Mul", ["c", "up"], ["one"]),
        node("Neg", ["one"], ["zero"]),
        node("Concat", ["zero", "one"], ["z"], axis=3),
        node("Softmax", ["z"], ["p"], axis=-1),
    ]
    shape = ("n", SIDE, SIDE, 1)
    graph = helper.make_graph(
        nodes,
        "masks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ("n", SIDE, SIDE, 2))],
        [
            numpy_helper.from_array(np.asarray(v, np.float32), k)
            for k, v in (("half", 0.5), ("up", 5.0))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    victim = rm.load_model(str(tmp_path / "m.onnx"), dataset=masks())
    expected = 10 * (X[:8, 0] - 0.5)
    torch.testing.assert_close(margin(victim(X[:8]).logits), expected, rtol=1e-4, atol=1e-4)
    assert any("ends in a softmax" in note for note in victim.card.notes)


def test_weights_behind_identities_and_constants(tmp_path: Path) -> None:
    """Exporters store equal weights once; onnx2torch would find none for the second layer."""

    def layers(model: Any) -> None:  # noqa: ANN401
        node = helper.make_node
        one = np.eye(2, dtype=np.float32)
        kept = [n for n in model.graph.node if n.name != "head"]
        del model.graph.node[:]
        model.graph.initializer.append(numpy_helper.from_array(one, "eye"))
        model.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(HEADS[2].T.astype(np.float32)), "head.w")
        )
        zero = numpy_helper.from_array(np.zeros(2, np.float32), "zero")
        model.graph.node.extend(
            [
                node("Identity", ["eye"], ["eye2"]),
                node("Constant", [], ["bias"], value=zero),
                *kept,
                node("Gemm", ["centred", "head.w", "bias"], ["a"], transB=1),
                node("Gemm", ["a", "eye2", "bias"], ["logits"], transB=1),
            ]
        )

    path = edited(truth(tmp_path / "m.onnx"), layers)
    model = rm.load_model(str(path), dataset=labels())
    assert not model.card.queries_only, model.card.notes
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)


def test_operators_that_are_made_of_others(tmp_path: Path) -> None:
    """onnx2torch knows no Gelu, which ONNX defines by the error function."""
    gelu = helper.make_node("Gelu", ["logits"], ["z"])

    def newer(model: Any) -> None:  # noqa: ANN401
        model.opset_import[0].version = 20

    path = edited(truth(tmp_path / "m.onnx", changed=[gelu], outputs=("z",)), newer)
    model = rm.load_model(str(path), dataset=labels())
    assert not model.card.queries_only
    expected = nn.functional.gelu(torch.stack([-SCORES / 2, SCORES / 2], 1))
    torch.testing.assert_close(model(X).logits, expected, rtol=1e-3, atol=1e-4)


def test_an_output_that_is_the_softmax_of_another_is_left_out(tmp_path: Path) -> None:
    path = truth(tmp_path / "m.onnx", 2, "Softmax", outputs=("y0", "logits"))
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)


def test_a_softmax_inside_stays(tmp_path: Path) -> None:
    again = helper.make_node("MatMul", ["y0", "back"], ["z"])

    def back(model: Any) -> None:  # noqa: ANN401
        square = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
        model.graph.initializer.append(numpy_helper.from_array(square, "back"))

    path = edited(truth(tmp_path / "m.onnx", 2, "Softmax", changed=[again], outputs=("z",)), back)
    model = rm.load_model(str(path), dataset=labels())
    expected = 2 * (2 * torch.sigmoid(SCORES) - 1)
    torch.testing.assert_close(margin(model(X).logits), expected, rtol=1e-3, atol=1e-4)
    assert not any("before it" in note for note in model.card.notes)


# --- without gradients ----------------------------------------------------------------------------


def test_what_cannot_be_converted_is_attacked_by_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = truth(tmp_path / "m.onnx", 2, "Softmax", "Identity")

    def refuses(model: object) -> nn.Module:
        raise NotImplementedError("Converter is not implemented")

    monkeypatch.setattr(onnx2torch, "convert", refuses)
    data = labels()
    model = rm.load_model(str(path), dataset=data)
    assert model.card.queries_only
    assert model.card.title == "m.onnx (queries only)"
    assert any(note.startswith("queries only: it runs in onnxruntime") for note in model.card.notes)
    logits = model(X.clone().requires_grad_(True)).logits
    assert not logits.requires_grad
    torch.testing.assert_close(margin(logits), SCORES, rtol=1e-4, atol=1e-4)
    module = model.victim.module
    torch.testing.assert_close(copy.deepcopy(module)(X), module(X))
    with pytest.raises(VictimError, match="--attack square asks the model") as error:
        rm.evaluate(str(path), data, "pgd", eps=EPS)
    assert "got pgd" in str(error.value)
    result = rm.evaluate(str(path), data, "square(queries=30)", eps=EPS, operating_point="argmax")
    assert EXACT <= result.accuracy < CLEAN
    assert result.records[0].record.model_card.queries_only
    assert not result.flags
    decided = rm.evaluate(str(path), data, "rays(queries=60)", eps=EPS, operating_point="argmax")
    assert EXACT <= decided.accuracy < CLEAN


def test_a_conversion_that_disagrees_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, convert = truth(tmp_path / "m.onnx"), onnx2torch.convert

    class Wrong(nn.Module):
        def __init__(self, model: Any) -> None:  # noqa: ANN401
            super().__init__()
            self.inner = convert(model)

        def forward(self, x: torch.Tensor) -> Any:  # noqa: ANN401
            return self.inner(x) * 1.01

    monkeypatch.setattr(onnx2torch, "convert", Wrong)
    model = rm.load_model(str(path), dataset=labels())
    assert model.card.queries_only
    assert any("differ from onnxruntime" in note for note in model.card.notes)


def test_a_suite_leaves_out_what_needs_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    side = 16
    truth(tmp_path / "m.onnx", 2, "Softmax")
    save_npz(tmp_path / "mine.npz", n=4, side=side)
    words = ["run", "--dataset", "mine.npz", "--model", "m.onnx(runtime=True)", "--eps", "1/255"]
    result = command(monkeypatch, capsys, *words)
    assert result.code == 0, result.err
    assert "queries only" in result.out
    assert "black box by queries" in result.out
    assert "FGSM" not in result.out
    result = command(monkeypatch, capsys, *words, "--attack", "pgd")
    assert result.code == 2
    assert "expected attacks by queries on a model without gradients" in result.err


# --- what is refused ------------------------------------------------------------------------------


def external(location: str, **entries: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:  # noqa: ANN401
        weights = next(t for t in model.graph.initializer if t.name == "w")
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            entry = weights.external_data.add()
            entry.key, entry.value = key, value

    return change


def huge(model: Any) -> None:  # noqa: ANN401
    model.graph.initializer[1].dims[:] = [2**31, 2**31]


def filling(model: Any) -> None:  # noqa: ANN401
    node = helper.make_node
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([32000, 32000, 32000], np.int64), "shape")
    )
    model.graph.node.extend(
        [
            node("ConstantOfShape", ["shape"], ["big"]),
            node("ReduceSum", ["big"], ["sum"], keepdims=0),
            node("Add", ["logits", "sum"], ["z"]),
        ]
    )
    model.graph.output[0].name = "z"


def foreign(model: Any) -> None:  # noqa: ANN401
    model.graph.node[2].domain = "com.somebody"


def whole_numbers(model: Any) -> None:  # noqa: ANN401
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def two_inputs(model: Any) -> None:  # noqa: ANN401
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, (1,)))


def larger(model: Any) -> None:  # noqa: ANN401
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 224


def dangling(model: Any) -> None:  # noqa: ANN401
    model.graph.node[2].input[0] = "nowhere"


HOSTILE: list[tuple[str, Callable[[Any], None], str]] = [
    ("above its folder", external("../w.bin"), "outside its folder"),
    ("absolute", external("/etc/passwd"), "outside its folder"),
    ("through a link", external("link.bin"), "outside its folder"),
    ("missing", external("none.bin"), "got none"),
    ("cut", external("short.bin", length="2048"), "expected 2048 bytes"),
    ("no number", external("short.bin", offset="-5"), "bytes in 'short.bin'"),
    ("huge", huge, "expected tensors that fit the file"),
    ("filling the memory", filling, "expected values of at most 2\\^30 numbers"),
    ("operator of a library", foreign, "which only a compiled library knows"),
    ("grey levels", whole_numbers, "expected an input of floating-point numbers"),
    ("two inputs", two_inputs, "expected one input, the images, got 2"),
    ("another size", larger, "expected a network that reads 1 x 16 x 16 images"),
    ("damaged", dangling, "expected a valid ONNX file"),
]


@pytest.mark.parametrize(("name", "change", "message"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_hostile_files_cost_one_line(
    tmp_path: Path, name: str, change: Callable[[Any], None], message: str
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    for place in (tmp_path / "w.bin", folder / "short.bin"):
        place.write_bytes(b"\0" * 100)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = edited(truth(folder / "m.onnx"), change)
    with pytest.raises(BenchError, match=message) as error:
        load_victim(str(path), labels().card)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty one"),
        (b"\x80\x04\x95", "a pickle"),
        (b"PK\x03\x04", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html>", "a web page"),
        (b"\x00\x01nothing", "cut or damaged"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(VictimError, match=message):
        load_victim(str(path), labels().card)


def test_cut_files_and_missing_ones(tmp_path: Path) -> None:
    path = truth(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(VictimError, match="expected an ONNX file|expected a valid ONNX file"):
        load_victim(str(path), labels().card)
    with pytest.raises(VictimError, match="got none"):
        load_victim(f"onnx:{tmp_path / 'no.onnx'}", labels().card)
    with pytest.raises(VictimError, match="expected onnx:FILE"):
        resolve_model("onnx:")
    with pytest.raises(BenchError, match="expected a parameter in runtime"):
        load_victim(f"onnx:{truth(tmp_path / 'n.onnx')}(device='gpu')", labels().card)


def test_names_of_nodes_are_never_executed(tmp_path: Path) -> None:
    """torch.fx writes the names of modules into source code and executes it."""
    planted = tmp_path / "executed"
    code = f'x"), __import__("pathlib").Path("{planted}").touch(), getattr(self, "'

    def name(model: Any) -> None:  # noqa: ANN401
        for i, node in enumerate(model.graph.node):
            node.name = code.replace("x", f"x{i}", 1)
        for value in (model.graph.input[0], model.graph.output[0]):
            for node in model.graph.node:
                for end in (node.input, node.output):
                    end[:] = [f"{code}{value.name}" if n == value.name else n for n in end]
            value.name = f"{code}{value.name}"

    path = edited(truth(tmp_path / "m.onnx"), name)
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)
    assert not model.card.queries_only
    assert not planted.exists()


def test_weights_beside_the_file_are_part_of_its_hash(tmp_path: Path) -> None:
    path = edited(truth(tmp_path / "m.onnx"), external("w.bin"))
    (tmp_path / "w.bin").write_bytes(HEADS[2].astype(np.float32).tobytes())
    model = rm.load_model(str(path), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-4, atol=1e-4)
    (tmp_path / "w.bin").write_bytes((2 * HEADS[2]).astype(np.float32).tobytes())
    assert rm.load_model(str(path), dataset=labels()).sha256 != model.sha256


def test_the_form_of_the_text() -> None:
    source = deployed_of("onnx:~/models/a b.onnx(mean=[0.5], std=[0.25])")
    assert source is not None
    assert source.place == "~/models/a b.onnx"
    assert source.parameters == {"mean": [0.5], "std": [0.25]}
    source = deployed_of("a (1).onnx(preprocess='resize(8, 8), stack(3)')")
    assert source is not None
    assert source.place == "a (1).onnx"
    assert source.parameters == {"preprocess": "resize(8, 8), stack(3)"}
    with pytest.raises(BenchError, match="expected literal values"):
        deployed_of("onnx:a.onnx(mean=zero)")
    assert deployed_of("timm:resnet18(weights='a.onnx')") is None
    assert deployed_of("chest_resnet") is None


def test_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = truth(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BenchError, match=r"pip install 'robustbench-med\[models\]'"):
        load_victim(str(path), labels().card)


def test_normalisation_of_the_text_counts(tmp_path: Path) -> None:
    path = truth(tmp_path / "m.onnx")
    model = rm.load_model(f"{path}(mean=[0.25], std=[0.5])", dataset=labels())
    shown = (X - 0.25) / 0.5
    expected = (shown.flatten(1) - 0.5) @ W
    torch.testing.assert_close(margin(model(X).logits), expected, rtol=1e-4, atol=1e-4)
