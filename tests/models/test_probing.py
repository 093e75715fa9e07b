"""How the outputs of a user's own model are read: containers, axes, probabilities, state."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

import robustbench_med as rm
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import BenchError, SpecError, VictimError
from robustbench_med.victim import frozen
from tests.models.truth import (
    CLEAN,
    FINDINGS,
    MASKS,
    PIXELS,
    SCORES,
    SIDE,
    Pixelwise,
    Truth,
    W,
    X,
    Y,
    findings,
    labels,
    masks,
)

Last = Callable[[Tensor], Any]
EPS = 0.003
MARGINS = {1: SCORES, 2: SCORES}


def margin(logits: Tensor) -> Tensor:
    """Return by how much class 1 leads."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def robust(module: nn.Module, data: Dataset, spec: str = "pgd(steps=10)", **stated: Any) -> float:  # noqa: ANN401
    """Return the share of images that are right under attack."""
    result = rm.attack(module, data, spec, eps=EPS, operating_point="argmax", **stated)
    return float((result.attacked & ~result.success).float().mean())


@pytest.fixture(scope="module")
def exact() -> float:
    """The right answer: a linear score moves by the radius times the sum of its weights."""
    stands = (SCORES.abs() > EPS * W.abs().sum()) & ((SCORES > 0) == (Y == 1))
    return float(stands.float().mean())


# --- probabilities -------------------------------------------------------------------------------

# (name, scores, function, whether the logit itself is recovered)
PROBABILITIES: list[tuple[str, int, Last, bool]] = [
    ("sigmoid", 1, torch.sigmoid, True),
    ("narrow sigmoid", 1, lambda z: (0.2 * z).sigmoid(), False),
    ("saturated sigmoid", 1, lambda z: (100 * z).sigmoid(), False),
    ("functional sigmoid, squeezed", 1, lambda z: functional.sigmoid(z).squeeze(), True),
    ("one side of a softmax", 2, lambda z: z.softmax(1)[:, 1], True),
    ("one side of a softmax, kept", 2, lambda z: z.softmax(1)[:, 1:], True),
    ("one minus a sigmoid", 1, lambda z: 1 - torch.sigmoid(-z), True),
    ("clamped sigmoid", 1, lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), True),
    ("both sides", 1, lambda z: torch.cat([1 - z.sigmoid(), z.sigmoid()], 1), True),
    ("softmax", 2, lambda z: z.softmax(1), True),
    ("saturated softmax", 2, lambda z: (200 * z).softmax(1), False),
    ("two sigmoids", 2, torch.sigmoid, False),
    ("log-sigmoid", 1, functional.logsigmoid, True),
    ("log-softmax", 2, lambda z: z.log_softmax(1), True),
    ("hard sigmoid", 1, functional.hardsigmoid, False),
    ("mean of two", 1, lambda z: (z.sigmoid() + (0.5 * z).sigmoid()) / 2, False),
    ("exponential", 1, lambda z: functional.logsigmoid(z).exp(), True),
    ("logits", 1, lambda z: z, True),
    ("small logits", 1, lambda z: 0.01 * z, False),
    ("hyperbolic tangent", 1, torch.tanh, False),
]


@pytest.mark.parametrize(
    ("name", "k", "last", "same"), PROBABILITIES, ids=[p[0] for p in PROBABILITIES]
)
def test_any_squashed_output_gives_the_right_numbers(
    name: str, k: int, last: Last, same: bool, exact: float
) -> None:
    data, module = labels(), Truth(k, last)
    logits = rm.load_model(module, dataset=data)(X).logits.detach()
    assert torch.equal(margin(logits) > 0, SCORES > 0)
    if same:
        torch.testing.assert_close(margin(logits), SCORES, rtol=1e-3, atol=1e-3)
    assert float(((margin(logits) > 0) == (Y == 1)).float().mean()) == pytest.approx(CLEAN)
    for spec in ("fgsm", "pgd(steps=10)"):
        assert robust(module, data, spec) == pytest.approx(exact), name


def test_decisions_are_logged_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    data = labels()
    with caplog.at_level(logging.WARNING):
        model = rm.load_model(Truth(1, torch.sigmoid), dataset=data, name="said")
    assert model.card.returns == "probabilities"
    assert "the model ends in a sigmoid" in model.card.notes[0]
    assert "returns='logits'" in caplog.text
    result = rm.evaluate(model, data, "fgsm", eps=EPS, operating_point="argmax")
    record = result.records[0].record
    assert model.card.notes[0] in record.notes
    assert record.model_card.returns == "probabilities"
    assert "probabilities" not in [flag.name for flag in result.flags]
    assert result.clean == pytest.approx(CLEAN)
    assert not rm.load_model(Truth(1), dataset=data).card.notes


def test_a_statement_overrides_the_probe() -> None:
    data = labels()
    stated = rm.load_model(Truth(1, torch.sigmoid), dataset=data, returns="probabilities")
    assert not stated.card.notes
    torch.testing.assert_close(stated(X).logits[:, 0].detach(), SCORES, rtol=1e-3, atol=1e-3)
    raw = rm.load_model(Truth(1, torch.sigmoid), dataset=data, returns="logits")
    torch.testing.assert_close(raw(X).logits[:, 0].detach(), SCORES.sigmoid())
    flags = rm.evaluate(raw, data, "fgsm", eps=EPS, operating_point="argmax").flags
    assert "probabilities" in [flag.name for flag in flags]
    assert len({item.sha256 for item in (stated, raw, rm.load_model(Truth(1), dataset=data))}) == 3
    with pytest.raises(VictimError, match=r"expected probabilities in \[0,1\], got 0"):
        rm.load_model(Truth(1), dataset=data, returns="probabilities")
    with pytest.raises(SpecError, match="expected returns='logits', 'probabilities' or 'auto'"):
        rm.load_model(Truth(1), dataset=data, returns="probs")


def test_outputs_on_one_side_of_0_are_noted() -> None:
    data = labels()
    model = rm.load_model(Truth(1, lambda z: functional.softplus(z) + 1e-3), dataset=data)
    assert "no image tried gave an output below 0" in model.card.notes[0]
    two = rm.load_model(Truth(2, functional.relu), dataset=data)
    assert not two.card.notes


@pytest.mark.parametrize(
    "last",
    [
        lambda z: z,
        torch.sigmoid,
        lambda z: (0.2 * z).sigmoid(),
        lambda z: torch.cat([item.sigmoid() for item in z.split(1, 1)], 1),
        functional.logsigmoid,
        lambda z: torch.stack([z.sigmoid(), z.sigmoid()]).mean(0),
    ],
)
def test_findings(last: Last, exact: float) -> None:
    data, module = findings(), Truth(3, last)
    logits = rm.load_model(module, dataset=data)(X).logits.detach()
    assert torch.equal((logits > 0).long(), (torch.stack([SCORES, -SCORES, SCORES], 1) > 0).long())
    assert float(((logits > 0) == (FINDINGS == 1)).float().mean()) == pytest.approx(CLEAN)
    assert robust(module, data) == pytest.approx(exact)


def meta_tensor(z: Tensor) -> Tensor:
    from monai.data.meta_tensor import MetaTensor  # here, for it takes seconds to import

    return MetaTensor(z)


@pytest.mark.parametrize(
    ("k", "last"),
    [
        (1, lambda z: z),
        (1, torch.sigmoid),
        (1, lambda z: z.sigmoid()[:, 0]),
        (1, lambda z: z.squeeze()),
        (1, lambda z: z.movedim(1, -1)),
        (2, lambda z: z),
        (2, lambda z: z.softmax(1)),
        (2, lambda z: {"out": z, "aux": functional.avg_pool2d(z, 2)}),
        (2, lambda z: [z, functional.avg_pool2d(z, 2)]),
        (2, meta_tensor),
    ],
)
def test_masks(k: int, last: Last) -> None:
    model = rm.load_model(Pixelwise(k, last), dataset=masks())
    for x, scores in ((X[:8], PIXELS), (X[:1], PIXELS[:1]), (X[:2], PIXELS[:2])):
        logits = model(x).logits.detach()
        assert logits.shape == (len(x), k, SIDE, SIDE)
        torch.testing.assert_close(margin(logits), scores[:, 0], rtol=1e-3, atol=1e-3)


def test_masks_with_narrow_probabilities_have_their_dice() -> None:
    data = masks()
    narrow = Pixelwise(1, lambda z: (0.1 * z).sigmoid())
    result = rm.attack(narrow, data, "fgsm", eps=EPS)
    assert torch.equal(result.clean_output.long(), MASKS)
    assert result.success.shape == (8,)


# --- containers and axes -------------------------------------------------------------------------

Named = namedtuple("Named", ["logits", "aux"])  # noqa: PYI024


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class ModelOutput(OrderedDict[str, Any]):
    """Looks like the outputs of transformers: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return self[name]


@pytest.mark.parametrize(
    ("last", "path"),
    [
        (lambda z: {"logits": z, "other": -z}, "'logits'"),
        (lambda z: {"out": z, "aux": -z}, "'out'"),
        (lambda z: {"class": z}, "'class'"),
        (lambda z: {"class": z, "features": z.new_zeros(len(z), 9), "loss": None}, "'class'"),
        (lambda z: (z, -z), "0"),
        (lambda z: [z, -z, -z], "0"),
        (lambda z: (z,), "0"),
        (lambda z: (z.new_zeros(len(z), 9), z), "1"),
        (lambda z: Named(z, -z), "'logits'"),
        (lambda z: Answer(z, (-z, -z)), "'logits'"),
        (lambda z: ModelOutput(logits=z, hidden_states=(-z, -z)), "'logits'"),
        (lambda z: ({"out": z, "aux": -z}, -z), "(0, 'out')"),
        (lambda z: (z.argmax(1), z), "1"),
    ],
)
def test_containers(last: Last, path: str) -> None:
    model = rm.load_model(Truth(2, last), dataset=labels())
    torch.testing.assert_close(margin(model(X).logits).detach(), SCORES)
    assert model.card.notes == (f"of what the model returns, {path} is read as its answer",)


def test_heads_of_deep_supervision() -> None:
    """Of masks at several sizes, the one of the images' size is read, wherever it stands."""
    for place in (0, 2):

        def heads(z: Tensor, place: int = place) -> list[Tensor]:
            small = [functional.avg_pool2d(z, side) for side in (2, 4)]
            small.insert(place, z)
            return small

        model = rm.load_model(Pixelwise(2, heads), dataset=masks())
        logits = model(X[:8]).logits.detach()
        torch.testing.assert_close(margin(logits), PIXELS[:, 0])


def test_an_output_can_be_chosen() -> None:
    both = Truth(2, lambda z: {"a": z, "b": -z})
    with pytest.raises(VictimError, match=r"got 2 \('a', 'b'\): choose with output='a'"):
        rm.load_model(both, dataset=labels())
    for output, sign in (("a", 1), ("b", -1)):
        model = rm.load_model(both, dataset=labels(), output=output)
        torch.testing.assert_close(margin(model(X).logits).detach(), sign * SCORES)
        again = rm.attack(model, labels(), "fgsm", eps=EPS, operating_point="argmax")
        torch.testing.assert_close(margin(again.clean_output), sign * SCORES)
    with pytest.raises(VictimError, match="expected a tensor at output='c', got dict of 'a'"):
        rm.load_model(both, dataset=labels(), output="c")


@pytest.mark.parametrize(
    "last",
    [
        lambda z: z[:, 0],
        lambda z: z.squeeze(),
        lambda z: z[:, :, None, None],
        lambda z: z.sigmoid().squeeze(1),
        lambda z: tv_tensors.Mask(z),
    ],
)
def test_one_logit_without_its_axis(last: Last) -> None:
    model = rm.load_model(Truth(1, last), dataset=labels())
    for n in (1, 2, 3, 40):
        torch.testing.assert_close(
            model(X[:n]).logits.detach(), SCORES[:n, None], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    ("k", "last", "message"),
    [
        (2, lambda z: None, "expected a tensor of 1 or 2 logits, got None"),
        (2, lambda z: "yes", "expected a tensor of 1 or 2 logits, got str"),
        (2, lambda z: {"a": z[:, :1].expand(-1, 5)}, "in one of the outputs, got dict of 'a'"),
        (2, lambda z: z.argmax(1), "got whole numbers .torch.int64.: return what"),
        (2, lambda z: z > 0, "got whole numbers .torch.bool.: return what"),
        (2, lambda z: z.to(torch.complex64), "got complex numbers"),
        (2, lambda z: z.T, "expected one output per image"),
        (2, lambda z: z.mean(0), "expected one output per image"),
        (1, lambda z: z.mean(), "got outputs () for 2 images"),
        (2, lambda z: torch.cat([z, z], 1), r"expected 1 or 2 logits for this data, got .*\(4,\)"),
    ],
)
def test_outputs_that_have_no_single_meaning(k: int, last: Last, message: str) -> None:
    for ask in (
        lambda module: rm.load_model(module, dataset=labels()),
        lambda module: rm.attack(module, labels(), "fgsm", eps=EPS),
    ):
        with pytest.raises(VictimError, match=message.replace("()", r"\(\)")) as caught:
            ask(Truth(k, last))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("k", "last", "message"),
    [
        (2, lambda z: z.movedim(1, -1), "move the axis of the classes before those of the pixels"),
        (2, lambda z: functional.avg_pool2d(z, 4), r"resize them to \(16, 16\) in the model"),
        (2, lambda z: z.argmax(1), "got whole numbers"),
        (2, lambda z: z.mean((2, 3)), "expected 1 or 2 logits at every pixel"),
    ],
)
def test_masks_that_have_no_single_meaning(k: int, last: Last, message: str) -> None:
    with pytest.raises(VictimError, match=message):
        rm.load_model(Pixelwise(k, last), dataset=masks())


def test_maps_are_no_labels() -> None:
    with pytest.raises(VictimError, match="average them over the pixels"):
        rm.load_model(Pixelwise(2), dataset=labels())


# --- state, precision, and what is left behind ---------------------------------------------------


def quantised(module: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models: nn.Module = torch.ao.quantization.quantize_dynamic(
            module, {nn.Linear}, dtype=torch.qint8
        )
    return models


def affine(shift: float = 0.0) -> nn.Sequential:
    """Return the truth as a linear layer."""
    layer = nn.Linear(SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-W / 2, W / 2]))
        layer.bias.copy_(torch.tensor([W.sum() / 4, -W.sum() / 4 + shift]))
    return nn.Sequential(nn.Flatten(), layer)


def scripted(module: nn.Module, *, freeze: bool = False) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = torch.jit.script(module.eval())
        return torch.jit.freeze(models) if freeze else models


def compiled(module: nn.Module) -> nn.Module:
    models: nn.Module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    return models


class Extra(Truth):
    """Keeps state that is no tensor."""

    def get_extra_state(self) -> object:
        return {"vocabulary": object()}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks for it
@pytest.mark.parametrize(
    "make",
    [
        affine,
        lambda: scripted(affine()),
        lambda: scripted(affine(), freeze=True),
        lambda: nn.DataParallel(affine()),
        lambda: compiled(affine()),
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(affine()[1])),
        lambda: Extra(2),
        lambda: Truth(2).double(),
        lambda: Truth(2).half(),
        lambda: Truth(2).bfloat16(),
        lambda: torch.export.export(
            affine(), (X[:2],), dynamic_shapes=({0: torch.export.Dim("b")},)
        ).module(),
    ],
)
def test_modules_of_every_kind(make: Callable[[], nn.Module], exact: float) -> None:
    module = make()
    assert robust(module, labels(), "fgsm") == pytest.approx(exact, abs=0.051)


@pytest.mark.parametrize(
    "attack",
    [
        "pgd(steps=5)",
        "apgd(steps=5)",
        "square(queries=20)",
        "deepfool",
        "fmn(steps=5)",
        "ensemble",
    ],
)
def test_a_module_in_double_precision_meets_every_kind_of_attack(attack: str) -> None:
    single, double = (
        rm.evaluate(module, labels(), attack, eps=EPS, operating_point="argmax")
        for module in (Truth(2), Truth(2).double())
    )
    assert double.accuracy == pytest.approx(single.accuracy, abs=0.051)


@pytest.mark.parametrize("script", [False, True])
def test_a_quantised_model_answers_queries(script: bool) -> None:
    module = quantised(affine())
    module = scripted(module) if script else module
    result = rm.evaluate(module, labels(), "square(queries=30)", eps=0.01, operating_point="argmax")
    assert result.clean == pytest.approx(CLEAN, abs=0.05)
    with pytest.raises(BenchError, match="choose an attack by queries"):
        rm.attack(module, labels(), "fgsm", eps=EPS)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_every_kind_of_state_changes_the_hash() -> None:
    def hash_of(module: nn.Module) -> str:
        return rm.load_model(module, dataset=labels()).sha256

    models: list[Callable[[float], nn.Module]] = [
        affine,
        lambda s: quantised(affine(s)),
        lambda s: scripted(affine(s)),
        lambda s: scripted(affine(s), freeze=True),
        lambda s: scripted(quantised(affine(s))),
        lambda s: compiled(affine(s)),
        lambda s: Truth(2, lambda z: z + s),
    ]
    hashes = [[hash_of(make(0.0)), hash_of(make(0.0)), hash_of(make(1.0))] for make in models]
    assert [item == again != different for item, again, different in hashes] == [True] * len(models)
    assert len({item for row in hashes for item in row}) == 2 * len(models)
    plus, minus = Truth(1, lambda z: z + 1), Truth(1, lambda z: z - 1)
    assert hash_of(plus) != hash_of(minus)


class KeepsTraining(nn.Module):
    """Keeps its batch norm in training, whatever mode it is put into."""

    calls: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.how = nn.BatchNorm2d(1), how
        self.truth = Truth(2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        if self.how == "mode":
            self.norm.train()
        x = (
            functional.batch_norm(
                x, self.norm.running_mean, self.norm.running_var, training=self.how == "functional"
            )
            if self.how != "mode"
            else self.norm(x)
        )
        answer: Tensor = self.truth(0.5 + 0.09 * x)
        return answer


@pytest.mark.parametrize("how", ["mode", "functional"])
def test_a_batch_norm_in_training_mode_is_noted_and_restored(how: str) -> None:
    module = KeepsTraining(how).eval()
    before = copy.deepcopy(module.state_dict())
    calls = module.calls
    model = rm.load_model(module, dataset=labels())
    assert any("depends on the other images" in note for note in model.card.notes)
    assert ("training mode when" in " ".join(model.card.notes)) == (how == "mode")
    model(X[:5])
    rm.attack(module, labels(), "fgsm", eps=EPS, operating_point="argmax")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.calls is calls
    assert not any(part.training for part in module.modules())


def test_buffers_are_put_back_after_an_exception() -> None:
    norm = nn.BatchNorm2d(1)
    assert norm.running_mean is not None
    with pytest.raises(ValueError, match="expected 4D input"), frozen(norm):
        norm(norm.train()(X)[:, 0])
    assert float(norm.running_mean) == 0
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 0


def test_a_model_that_adapts_in_the_forward_pass_is_refused_and_restored() -> None:
    class Adapting(Truth):
        def forward(self, x: Tensor) -> Any:  # noqa: ANN401
            self.w.data.add_(0.01)
            return super().forward(x)

    module = Adapting(2)
    with pytest.raises(VictimError, match="weights do not change, got one that changes them"):
        rm.load_model(module, dataset=labels())
    assert torch.equal(module.w, W)


def test_a_model_without_weights_yet() -> None:
    for layer, message in (
        (nn.LazyLinear(2), "without a shape"),
        (nn.Linear(SIDE * SIDE, 2, device="meta"), "on the meta device"),
    ):
        with pytest.raises(VictimError, match=message):
            rm.load_model(nn.Sequential(nn.Flatten(), layer), dataset=labels())


def test_a_model_that_reads_no_single_image() -> None:
    module = nn.Sequential(affine(), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(VictimError, match="images one by one, got: Expected more than 1 value"):
        rm.load_model(module, dataset=labels())


def test_a_network_of_colours_on_grey_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    way = r'got one that reads 3 channels: add .* preprocess="stack\(3\)" in Python'
    with pytest.raises(VictimError, match=way):
        rm.load_model(network, dataset=labels())

    grey = rm.load_model(network, dataset=labels(), preprocess="stack(3)")
    assert torch.equal(grey(X).logits, network(X.expand(-1, 3, -1, -1)))


# --- where it is called --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
def test_contexts_of_the_caller(around: Callable[[], Any], exact: float) -> None:
    data = labels()
    with around():
        assert robust(affine_outside(), data) == pytest.approx(exact)
        model = rm.load_model(affine_outside(), dataset=data)
        result = rm.evaluate(model, data, "fgsm", eps=EPS, operating_point="argmax")
    assert result.accuracy == pytest.approx(exact)


def affine_outside() -> nn.Sequential:
    with torch.inference_mode(False), torch.device("cpu"):
        return affine()


def test_weights_made_inside_inference_mode(exact: float) -> None:
    with torch.inference_mode():
        module = affine()
        shipped = rm.load_model("chest_resnet")
    weights = list(module.parameters())
    assert all(item.is_inference() for item in weights)
    assert robust(module, labels()) == pytest.approx(exact)
    assert [id(item) for item in module.parameters()] == [id(item) for item in weights]
    assert not any(item.is_inference() for item in shipped.victim.module.parameters())


def test_another_default_type(exact: float) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert robust(affine().float(), labels()) == pytest.approx(exact)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


ROWS: list[tuple[Last, str]] = [
    (lambda z: z.softmax(1).softmax(1), "a softmax and then a softmax"),
    (lambda z: torch.sigmoid(z.softmax(1)), "a softmax and then a sigmoid"),
    (lambda z: z.sigmoid().softmax(1), "a sigmoid and then a softmax"),
    (lambda z: 5 * functional.softmax(z, 1) - 2, "a softmax and then a scale and then a scale"),
    (lambda z: functional.log_softmax(z.softmax(1), 1), "a softmax and then a log-softmax"),
    (lambda z: (z / 2).softmax(1)[:, :].softmax(1), "a softmax and then a softmax"),
]


@pytest.mark.parametrize(("last", "words"), ROWS)
def test_several_functions_in_a_row_hide_no_gradient(last: Last, words: str, exact: float) -> None:
    steep = copy.deepcopy(Truth(2, lambda z: last(1000 * z)))  # the first is 0 or 1, and flat
    model = rm.load_model(steep, dataset=labels())
    assert any(f"ends in {words}: logits are taken from before" in n for n in model.card.notes)
    with torch.no_grad():
        assert torch.equal(model(X).logits.argmax(1), Truth(2)(X).argmax(1))
    assert robust(steep, labels()) == exact


@pytest.mark.parametrize("weight", [1.05, 1.2])
def test_a_factor_for_each_class_is_part_of_the_model(weight: float) -> None:
    steep = Truth(2, lambda z: z.softmax(1) * z.new_tensor([1.0, weight]))
    model = rm.load_model(steep, dataset=labels())
    assert not any("taken from before" in note for note in model.card.notes)
    with torch.no_grad():
        assert torch.equal(model(X).logits.argmax(1), steep(X).argmax(1))


@pytest.mark.parametrize(
    ("k", "last"),
    [
        (3, lambda z: z.sigmoid().sigmoid()),
        (1, lambda z: z.sigmoid().sigmoid()),
        (2, lambda z: functional.hardsigmoid(z).softmax(1).softmax(1)),
    ],
)
def test_rows_behind_which_nothing_is_decided_are_refused(k: int, last: Last) -> None:
    with pytest.raises(VictimError, match="or in one softmax or sigmoid, got a .*sigmoid and then"):
        rm.load_model(Truth(k, last), dataset=findings() if k == 3 else labels())
    taken = rm.load_model(
        Truth(k, last), dataset=findings() if k == 3 else labels(), returns="logits"
    )
    assert taken.card.returns == "logits"


@pytest.mark.parametrize(
    "last",
    [
        lambda z: 1 - z.softmax(1),  # turns the order round
        lambda z: (z.softmax(1) + z.flip(1).softmax(1).flip(1)) / 2,  # the mean of two networks
        lambda z: z.softmax(1) + torch.tensor([-0.9, 0.9]),  # moves the decision
    ],
)
def test_no_row_is_cut_that_decides_otherwise(last: Last) -> None:
    model = rm.load_model(Truth(2, last), dataset=labels())
    with torch.no_grad():
        assert torch.equal(model(X).logits.argmax(1), Truth(2, last)(X).argmax(1))
    assert not any("logits are taken from before" in note for note in model.card.notes)
