"""Cards: the descriptions that `list` and `show` print. Reading a card imports no heavy library."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Norm = Literal["linf", "l2", "l1", "l0", "severity"]  # the last one is that of a shift
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")  # those of attacks
SEVERITY: Norm = "severity"  # takes the place of a norm in a case of a shift
Threat = Literal[
    "white_box", "universal", "transfer", "no_box", "query", "label", "control", "shift"
]
Schedule = Literal["ascend", "descend", "distance", "universal", "severity"]
Task = Literal["single_label", "multi_label", "segmentation"]
TASKS: tuple[Task, ...] = get_args(Task)


class Card(BaseModel):
    """The description of a model, dataset, attack, defense or suite, read without loading it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="registry name, lower_snake")
    title: str = Field(description="name on pages and in tables")
    summary: str = Field(default="", description="one sentence")
    source: str = Field(default="", description="paper, section, equation, or origin of the data")


class PluginCard(Card):
    """Common fields of attacks and defenses: a function, its version and its parameters."""

    function: str = Field(description="module:function; relative to its folder if shipped")
    version: int = Field(default=1, description="raised when results change; case ids depend on it")
    sha256: str = Field(
        default="",
        exclude_if=lambda digest: not digest,
        description="of a function in a file of the user's own: hash of the code that ran",
    )
    aliases: tuple[str, ...] = Field(
        default=(), exclude=True, description="other names in the literature; not in records"
    )
    tasks: tuple[Task, ...] = Field(default=TASKS, description="tasks it can be run on")
    parameters: dict[str, Any] = Field(default_factory=dict, description="names and defaults")
    positive: tuple[str, ...] = Field(default=(), description="parameters that must be > 0")
    meanings: dict[str, str] = Field(
        default_factory=dict,
        exclude=True,
        description="meaning of each parameter, with unit and range; not in records",
    )


class AttackCard(PluginCard):
    """An attack: its function and the properties that the bench needs to run it."""

    norms: tuple[Norm, ...]
    threat: Literal["white_box", "query", "label", "control", "shift"] = Field(
        default="white_box",
        description="access to the victim that it needs; a control needs none, and a shift is what "
        "a scanner, an operator or an archive does",
    )
    schedule: Schedule = Field(
        description="how a ladder is filled; see robustbench_med/bench/eps_search.py"
    )
    effort: tuple[str, ...] = Field(
        default=(), description="parameters that add strength; a check doubles them"
    )
    fixed_step: bool = Field(
        default=False, description="whether the length of its steps does not depend on the radius"
    )


class DefenseCard(PluginCard):
    """A defense: the function that wraps or retrains a victim."""

    kind: Literal["training", "transform", "detector", "smoothing"] = Field(
        description="training retrains a victim, the others wrap it"
    )
    fitted: bool = Field(
        default=False, description="whether it is fitted on training and validation images"
    )


_EXACT = 2**24  # float32 holds every whole number up to here


class NativeRange(BaseModel):
    """The stored values behind [0,1]: 0 is `low`, 1 is `high`, and a file holds `low + k * step`.

    >>> hu = NativeRange(unit="HU", low=-1024, high=3071)
    >>> hu.levels, hu.bits, hu.text
    (4095, 12, 'HU -1024..3071')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    unit: str = Field(description='unit of a stored value, e.g. "HU" or "grey level"', min_length=1)
    low: float = Field(description="stored value that is 0")
    high: float = Field(description="stored value that is 1")
    step: float = Field(default=1, gt=0, description="difference of neighbouring stored values")

    @model_validator(mode="after")
    def _exact(self) -> NativeRange:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low:g} and {self.high:g}")
        count = (self.high - self.low) / self.step
        if abs(count - round(count)) > 1e-6 * count:
            raise ValueError(
                f"expected high - low to be a whole number of steps, got {count:g} steps of "
                f"{self.step:g}"
            )
        if max(count, abs(self.low / self.step), abs(self.high / self.step)) > _EXACT:
            raise ValueError(
                f"expected values that float32 holds exactly, at most {_EXACT} steps from 0, got "
                f"{self.low:g}..{self.high:g} in steps of {self.step:g}: window them first"
            )
        return self

    @property
    def levels(self) -> int:
        """The number of steps from `low` to `high`; an image has one more different values."""
        return round((self.high - self.low) / self.step)

    @property
    def bits(self) -> int:
        """The bits that hold every step."""
        return math.ceil(math.log2(self.levels + 1))

    @property
    def text(self) -> str:
        """The range in words, e.g. "HU -1024..3071"."""
        return f"{self.unit} {self.low:.10g}..{self.high:.10g}"


class DatasetCard(Card):
    """A dataset and its contract."""

    modality: str
    task: Task
    classes: tuple[str, ...] = Field(
        description="class names (or finding names) in label order; for masks, 0 is the background"
    )
    regions: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="for masks: the scored regions, each a union of class ids; empty = each class "
        "except 0",
    )
    normal: int | None = Field(
        default=None, description="index of the healthy class; None if there is none"
    )
    stored_ids: tuple[tuple[int, ...], ...] = Field(
        default=(),
        exclude=True,
        description="for labels of a file: the ids that each class joins, in the order of "
        "`classes`; empty = each class its own; not in records",
    )
    absent: tuple[str, ...] = Field(
        default=(),
        description="classes or findings that are missing in the scored split, and count in no "
        "mean; a missing region is not in `regions`",
    )
    channels: int = Field(ge=1)
    channel_names: tuple[str, ...] = Field(default=(), description="e.g. T1, FLAIR")
    size: tuple[int, ...] = Field(description="[depth,] height, width in pixels")
    sizes: tuple[tuple[int, ...], ...] = Field(
        default=(),
        exclude_if=lambda sizes: not sizes,
        description="where each image keeps its own size: some of the sizes, the largest first, "
        "which is `size`; empty = every image has `size`",
    )
    spacing: tuple[float, ...] | None = Field(
        default=None, description="mm per pixel along each axis; None = unknown"
    )
    tolerance: float = Field(
        default=2.0, description="tolerance of the surface distance in mm; in pixels if no spacing"
    )
    bit_depth: int = Field(default=8, description="bits of a stored pixel")
    native_range: str = Field(default="grey level 0..255", description="original values of [0,1]")
    native: NativeRange | None = Field(
        default=None,
        exclude_if=lambda native: native is None,
        description="the stored values of images that are stored in their own unit; gives "
        "`native_range` and `bit_depth`",
    )
    preprocess: str = Field(
        default="",
        exclude_if=lambda text: not text,
        description="steps between a stored image and a user's own network, see "
        "robustbench_med/models/preprocess.py; a model may state its own",
    )
    synthetic: bool = Field(default=False, description="whether it is a drawn phantom")
    function: str = Field(default="", description="module:function that draws a phantom")
    file: str = Field(default="", description="file name below --data or the cache")
    url: str = Field(default="", description="official https address")
    md5: str = Field(default="", description="checksum that the official address states")
    sha256: tuple[str, ...] = Field(default=(), description="known contents of the file")
    licence: str = ""
    official: str = Field(
        default="",
        exclude=True,
        description="where the official set is, of which the file is a selection; not in records",
    )
    licence_basis: str = Field(
        default="", exclude=True, description="the licence and who states it; not in records"
    )
    notes: tuple[str, ...] = Field(default=(), description="known traps of the data")

    @model_validator(mode="before")
    @classmethod
    def _of_native(cls, fields: Any) -> Any:  # noqa: ANN401 - pydantic passes any value
        """Derive `native_range` and `bit_depth` from `native`.

        Raises:
            ValueError: one of them is stated and differs.
        """
        if not isinstance(fields, dict) or fields.get("native") is None:
            return fields
        native = NativeRange.model_validate(fields["native"])
        derived = {"native_range": native.text, "bit_depth": native.bits}
        for key, value in derived.items():
            if fields.get(key, value) != value:
                raise ValueError(f"expected {key} {value!r} of native, got {fields[key]!r}")
        return {**fields, **derived, "native": native}

    @property
    def levels(self) -> int:
        """The number of steps between the stored values behind 0 and 1; 255 of 8-bit images."""
        return 2**self.bit_depth - 1 if self.native is None else self.native.levels

    @property
    def sizes_differ(self) -> bool:
        """Whether images keep their own sizes, and have several."""
        return len(set(self.sizes)) > 1

    @property
    def size_words(self) -> str:
        """The size of an image, e.g. "64x64", or "up to 512x400" where each keeps its own."""
        return ("up to " if self.sizes_differ else "") + "x".join(map(str, self.size))

    @property
    def heading(self) -> str:
        """Title of a board; a phantom always says so."""
        return f"{self.title} (synthetic phantom)" if self.synthetic else self.title

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The scored parts of a mask by name: the card's regions, or each class except 0."""
        if self.regions:
            return self.regions
        return {name: (k,) for k, name in enumerate(self.classes) if k}

    @property
    def binary(self) -> bool:
        """Whether each image has one of exactly two classes."""
        return self.task == "single_label" and len(self.classes) == 2

    @property
    def outputs(self) -> tuple[int, ...]:
        """Possible numbers of logits for this data; two classes may have one logit."""
        k = len(self.classes)
        return (1, k) if k == 2 and self.task != "multi_label" else (k,)


class FirstStage(BaseModel):
    """A part of a network that is trained before the rest, on other data, and then stays fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str = Field(description="attribute of the network, e.g. detector")
    dataset: str = Field(description="registry name of the data that the part is trained on")
    epochs: int = Field(gt=0)


class Recipe(BaseModel):
    """How a shipped model is trained; `train CARD` follows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int
    batch: int = 64
    lr: float = Field(default=2e-3, description="peak rate of AdamW on a one-cycle schedule")
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    augment: tuple[Literal["flip", "flips", "shift", "rotate", "zoom", "contrast"], ...] = Field(
        default=(), description="flip: left-right; flips: along every axis"
    )
    seed: int = 0
    defense: str = Field(
        default="", description="spec of the defense trained with, e.g. pgd_at(eps=4/255)"
    )
    start: str = Field(
        default="",
        description="what its weights start from: a shipped victim, a weights file, the card of a "
        "trained model, or `hub`, those of timm's hub; a last layer of another width is new",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        exclude_if=lambda parts: parts == 1,
        description="parts that a batch is split into, whose gradients are added up",
    )
    ema: float = Field(
        default=0, ge=0, lt=1, description="decay of the moving average of weights; 0 = off"
    )
    patience: int = Field(
        default=0, ge=0, description="epochs without better robust validation before it stops"
    )
    precision: Literal["float32", "bfloat16"] = "float32"
    half: Literal["", "first", "second"] = Field(
        default="",
        exclude_if=lambda half: not half,
        description="half of the training patients that it is fitted on, so that two victims may "
        "share none; empty = all",
    )
    first: FirstStage | None = Field(
        default=None,
        exclude_if=lambda stage: stage is None,
        description="the part that is trained first; batch, lr and the like are the recipe's",
    )


class Measured(BaseModel):
    """The measurements of `train` on the model that it wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    balanced_accuracy: float | None = Field(
        default=None, description="on the test split, at the operating point"
    )
    accuracy: float | None = None
    dice: float | None = Field(default=None, description="for masks: mean over images and regions")
    gradient_ms: float = Field(description="time of one image forward + backward on `machine`, ms")
    machine: str

    @property
    def headline(self) -> tuple[str, float]:
        """The name of the most important score, and the score."""
        if self.dice is not None:
            return "Dice", self.dice
        return "balanced accuracy", self.balanced_accuracy or 0.0


class TrainedOn(BaseModel):
    """The data that a model trained on a person's own data fits: what its outputs mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, ...]
    native_range: str


class ModelCard(Card):
    """A victim: its architecture, training data, recipe and weights."""

    family: str
    dataset: str = Field(description="registry name of the training data")
    builder: str = Field(
        description="spec of the architecture, see robustbench_med/models/build.py"
    )
    preprocess: str = Field(
        default="",
        exclude_if=lambda text: not text,
        description="steps between a stored image and mean and std, e.g. window(40, 400)",
    )
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    recipe: Recipe | None = None
    window: tuple[int, ...] | None = Field(
        default=None,
        description="for masks: size of the windows that the network reads, see sliding.py",
    )
    overlap: float = Field(
        default=0.25, ge=0, lt=1, description="fraction by which neighbouring windows overlap"
    )
    weights: str = Field(default="", description="safetensors file beside the card")
    sha256: str = Field(default="", description="checksum of the weights, checked at every load")
    weights_type: Literal["float32", "float16"] = Field(
        default="float32",
        description="type of the stored matrices and kernels; the model computes in float32",
    )
    measured: Measured | None = None
    undefended: str = Field(
        default="", description="victim of the same architecture without the defense"
    )
    returns: Literal["logits", "probabilities"] = Field(
        default="logits", description="meaning of the module's outputs"
    )
    output: str = Field(
        default="", description="the output that is read if the module has several; else empty"
    )
    queries_only: bool = Field(
        default=False,
        exclude_if=lambda queries_only: not queries_only,
        description="whether it gives no gradient, as a server does: only attacks by queries run",
    )
    notes: tuple[str, ...] = Field(
        default=(), description="decisions made when a user's own model was loaded"
    )
    fits: TrainedOn | None = Field(
        default=None,
        exclude_if=lambda data: data is None,
        description="the data of a model that `train` made of a person's own data",
    )
    code: str = Field(
        default="",
        exclude_if=lambda digest: not digest,
        description="of a builder FILE.py:FACTORY: hash of the code, checked at every load",
    )
    named: bool = Field(
        default=False,
        exclude_if=lambda named: not named,
        description="whether a person chose the title, with --name",
    )

    @property
    def trained_here(self) -> bool:
        """Whether no weights are shipped, and the recipe makes them on this machine."""
        return self.recipe is not None and not self.weights
