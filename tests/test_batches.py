"""A batch handed in from Python is taken where it means one thing, and refused in one line else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustbench_med as rm
from robustbench_med.api import AttackResult
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import BenchError, DataError
from robustbench_med.types import Batch

from .toys import Linear, Pointwise

N = 40
X = 0.35 + 0.3 * torch.rand(N, 1, 16, 16, generator=torch.Generator().manual_seed(0))
IDS = np.array([f"s{row}" for row in range(N)])


def net(k: int = 2) -> nn.Module:
    """Return a linear model of k classes whose rows are random signs."""
    w = torch.randn(k, 256, generator=torch.Generator().manual_seed(1)).sign() / 2
    return Linear(w, -w.sum(1) / 2).eval()


Y = {k: net(k)(X).argmax(1) for k in (2, 3)}
for labels in Y.values():
    labels[::10] = (labels[::10] + 1) % 2  # wrong of one in ten


def attacked(y: Any, k: int = 2, **changed: Any) -> AttackResult:  # noqa: ANN401 - any label
    values = {"x": X, "y": y, "ids": IDS} | changed
    return rm.attack(net(k), Batch(**values), "fgsm", eps=0.003)


def numbers(result: AttackResult) -> tuple[list[bool], list[bool], list[int]]:
    return result.attacked.tolist(), result.success.tolist(), result.y.tolist()


EXPECTED = {k: numbers(attacked(Y[k], k)) for k in (2, 3)}
SAME: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("(n, 1)", lambda y: y[:, None]),
    ("floats", lambda y: y.float()),
    ("doubles (n, 1)", lambda y: y.double()[:, None]),
    ("int32", lambda y: y.int()),
    ("array", lambda y: y.numpy()),
    ("list", lambda y: y.tolist()),
]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("name", "form"), SAME)
def test_labels_of_one_meaning_are_taken(k: int, name: str, form: Callable[[Tensor], Any]) -> None:
    assert numbers(attacked(form(Y[k]), k)) == EXPECTED[k], name


def test_two_classes_may_be_bool() -> None:
    assert numbers(attacked(Y[2] > 0)) == EXPECTED[2]


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("double", X.double()),
        ("requires grad", X.clone().requires_grad_(True)),
        ("part of a graph", X.clone().requires_grad_(True) * 1),
        ("array", X.numpy()),
        ("not contiguous", X.transpose(2, 3).contiguous().transpose(2, 3)),
        ("rounding above", torch.where(X.max() == X, 1 + 1.2e-7, X)),
    ],
)
def test_images_of_one_meaning_are_taken(name: str, x: Any) -> None:  # noqa: ANN401
    result = attacked(Y[2], x=x)
    assert result.x.dtype == torch.float32
    assert not result.z.requires_grad
    if not name.startswith("rounding"):
        assert numbers(result) == EXPECTED[2]
    assert float(result.x.max()) <= 1


def test_a_pair_of_images_and_labels_is_a_batch() -> None:
    for pair in ((X, Y[2]), [X.numpy(), Y[2].numpy()]):
        result = rm.attack(net(), pair, "fgsm", eps=0.003)
        assert numbers(result) == EXPECTED[2]
        assert result.ids[0] == "batch-000000"


def test_grey_levels_are_divided_by_255() -> None:
    levels = (X * 255).round().to(torch.uint8)
    result = attacked(Y[2], x=levels)
    torch.testing.assert_close(result.x, levels.float() / 255)


def nan() -> Tensor:
    x = X.clone()
    x[3, 0, 0, 0] = torch.nan
    return x


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": torch.where(Y[2] > 0, 0.95, 0.05)}, "got fractions such as 0"),
        ({"y": torch.where(Y[2] > 0, 0.95, 0.05)[:, None]}, "got fractions such as 0"),
        ({"y": Y[2] * 2 - 1}, "got only -1 and 1"),
        ({"y": Y[2] + 1}, r"expected labels in 0\.\.1 .* got 1\.\.2"),
        ({"y": Y[2] * torch.nan}, "got NaN in 40 of 40"),
        ({"y": torch.eye(2)[Y[2]]}, "rows that all sum to one, which may be either"),
        ({"y": Y[2][:7]}, "expected one label or mask per image, got 7 for 40 images"),
        ({"y": Y[2][0]}, "expected one label or mask per image, got a single number"),
        ({"y": None}, "expected labels y as a tensor or an array, got NoneType"),
        ({"y": ["a"] * N}, "expected class ids as numbers, got text"),
        ({"y": torch.zeros(N, 4, 4)}, r"expected class ids of shape \(n, h, w\), got"),
        ({"x": X[:, 0]}, r"expected images of shape \(b, c, h, w\) .* got \(40, 16, 16\)"),
        ({"x": X[0]}, r"expected images of shape .* pass one image as x\[None\]"),
        ({"x": X.movedim(1, -1)}, r"expected channels first, .* x.movedim\(-1, 1\)"),
        ({"x": X.movedim(1, -1).expand(-1, -1, -1, 3)}, "expected channels first"),
        ({"x": X[:0], "y": Y[2][:0], "ids": IDS[:0]}, "expected at least one image, got none"),
        ({"x": nan()}, "expected finite images, got NaN"),
        ({"x": X * 255}, r"expected float images in \[0,1\], got .*; divide grey levels"),
        ({"x": X - 0.5}, r"expected float images in \[0,1\], got -0.1"),
        ({"x": X - X.max() + 1.000005}, r"expected float images in \[0,1\], got .*\.\.1\.00000"),
        ({"x": X.byte()}, "got only 0 and 1, as .* cast to uint8"),
        ({"x": X.long()}, "expected float images in .* got int64"),
        ({"x": torch.full_like(X, 0.5)}, "expected images with content"),
        ({"x": None}, "expected images x as a tensor or an array, got NoneType"),
        ({"ids": IDS[:3]}, "expected ids as 40 names"),
        ({"ids": np.array(["a"] * N)}, "expected one id per image, got 1 for 40"),
        ({"patients": IDS[:3]}, "expected patients as 40 names"),
        ({"patients": "p"}, "expected patients as a tensor or an array, got str"),
    ],
)
def test_what_means_two_things_is_refused_in_one_line(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        attacked(**({"y": Y[2]} | changed))
    assert "\n" not in str(caught.value)


# --- masks --------------------------------------------------------------------------------------


def masked(y: Any, k: int = 2) -> AttackResult:  # noqa: ANN401
    w = 20 * torch.arange(k, dtype=torch.float32)[:, None]
    module = Pointwise(w, -0.5 * w[:, 0])
    return rm.attack(module, Batch(X, y, IDS), "segpgd(steps=3)", eps=0.05)


MASK = (X[:, 0] > 0.5).long()


@pytest.mark.parametrize(
    "y",
    [
        MASK[:, None],
        MASK[..., None],
        MASK.float(),
        MASK.bool(),
        MASK.byte().numpy(),
        torch.stack([1 - MASK, MASK], 1),
        torch.stack([1.0 - MASK, MASK], -1),
    ],
    ids=["first", "last", "float", "bool", "byte", "planes first", "planes last"],
)
def test_masks_of_one_meaning_are_taken(y: Any) -> None:  # noqa: ANN401
    expected, result = masked(MASK), masked(y)
    assert torch.equal(result.y, MASK)
    assert torch.equal(result.output, expected.output)


def test_a_class_that_no_mask_holds_lifts_nothing() -> None:
    two, three = masked(MASK, 2), masked(MASK, 3)
    assert two.success.tolist() == three.success.tolist()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.cat([MASK[:20], MASK[20:] * 255]), "got only 0 and 255 in 20 of 40 masks"),
        (MASK * 255, "got only 0 and 255 in the masks"),
        (MASK * 2 - 1, "got only -1 and 1"),
        (MASK * 0.7, "got fractions such as 0"),
        (torch.stack([MASK, MASK], 1), "planes that overlap or leave pixels"),
    ],
)
def test_masks_that_hide_a_class_are_refused(y: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        masked(y)


# --- other types --------------------------------------------------------------------------------

PAIRS = TensorDataset(X, Y[2])
WRONG_TYPES: list[tuple[Any, str]] = [
    (None, "got None"),
    (X, "got a torch Tensor: one array has either images or labels"),
    (X.numpy(), "got a numpy ndarray: one array has either images or labels"),
    ({"x": X, "y": Y[2]}, r"got a dict of 2: save its arrays as splits"),
    (DataLoader(PAIRS, batch_size=4), "got a torch DataLoader: stack the batches that it yields"),
    ([(X[0], 1)], "got a list of 1"),
    ((X, Y[2], IDS), "got a tuple of 3"),
    (Dataset, "got the class Dataset"),
    (3, "got a int"),
    (b"mine.npz", "got a bytes"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_TYPES)
@pytest.mark.parametrize("face", ["attack", "evaluate", "load_model", "load_dataset"])
def test_another_type_is_named_with_the_way_to_go(face: str, data: object, message: str) -> None:
    call: dict[str, Callable[[], object]] = {
        "attack": lambda: rm.attack(net(), data, "fgsm", eps=0.1),  # type: ignore[arg-type]
        "evaluate": lambda: rm.evaluate(net(), data, "fgsm", eps=0.1),  # type: ignore[arg-type]
        "load_model": lambda: rm.load_model(net(), dataset=data),  # type: ignore[arg-type]
        "load_dataset": lambda: rm.load_dataset(data),  # type: ignore[arg-type]
    }
    if face == "load_model" and data is None:
        pytest.skip("nothing handed in")
    with pytest.raises(BenchError, match=message) as caught:
        call[face]()
    assert "load_dataset" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [Batch(X, Y[2], IDS), (X, Y[2])])
def test_a_batch_is_for_an_attack_alone(data: object) -> None:
    with pytest.raises(DataError, match=r"expected a dataset, got .*numpy.savez_compressed"):
        rm.evaluate(net(), data, "fgsm", eps=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda split: {"test": 1}[split + "s"], "to return Arrays, got KeyError"),
        (
            lambda _: (X, Y),
            r"expected read\(split\) to return Arrays\(images, labels, ids\), got tuple",
        ),
        (lambda _: None, "got NoneType"),
    ],
)
def test_a_reader_of_ones_own_is_checked(read: Any, message: str) -> None:  # noqa: ANN401
    from robustbench_med.cards import DatasetCard

    card = DatasetCard(
        name="mine",
        title="Mine",
        modality="drawn",
        task="single_label",
        classes=("a", "b"),
        channels=1,
        size=(16, 16),
    )
    with pytest.raises(DataError, match=message):
        rm.evaluate(net(), Dataset(card, read), "fgsm", eps=0.1)


def test_a_plain_batch_claims_no_grey_levels() -> None:
    with pytest.raises(BenchError, match="float 0..1"):
        rm.attack(net(), (X, Y[2]), "fgsm", eps="4gl")
