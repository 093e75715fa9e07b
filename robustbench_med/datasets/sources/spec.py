"""Read a card file: a dataset's card with a table `[source]` that says how its files are read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.errors import DataError, SpecError
from robustbench_med.paths import check_name
from robustbench_med.registry import validate

NATIVE = "native"  # the size of images that keep their own
MAX_SIDE = 2**16
MAX_TEXT = 2**22  # bytes of a card file
_OURS = ("function", "file", "url", "md5", "sha256", "synthetic", "stored_ids", "absent")
_EVERY = 1e-6
EACH = "each image from its own lowest to its own highest value"  # where scale is "each"


class Columns(BaseModel):
    """The columns of a CSV table, by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1, description="the name of the image")
    label: str = Field(default="", description="the class of an image, as text or number")
    findings: tuple[str, ...] = Field(default=(), description="one column of 0 and 1 per finding")
    separator: str = Field(default="", description="what separates several findings of one column")
    mask: str = Field(default="", description="the file name of the mask")
    split: str = Field(default="", description="the split of an image")
    patient: str = Field(default="", description="the patient of an image")
    groups: tuple[str, ...] = Field(default=(), description="subgroups such as sex or site")
    bands: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="the edges between the bands of a group of numbers"
    )

    @model_validator(mode="after")
    def _of_groups(self) -> Columns:
        for name in self.groups:
            if name in (self.patient, self.file):
                raise ValueError(f"expected groups, got {name!r}, which names patients or files")
        for name, edges in self.bands.items():
            if name not in self.groups:
                raise ValueError(f"expected bands of a column of groups, got {name!r}")
            if not edges or list(edges) != sorted(set(edges)):
                raise ValueError(f"expected rising edges in the bands of {name}, got {edges}")
        return self


class Draw(BaseModel):
    """Splits that are drawn by patient, stratified by class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(default=0.6, ge=0, le=1)
    val: float = Field(default=0.2, ge=0, le=1)
    test: float = Field(default=0.2, ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _whole(self) -> Draw:
        total = self.train + self.val + self.test
        if abs(total - 1) > _EVERY:
            raise ValueError(f"expected train + val + test to be 1, got {total:g}")
        return self

    @property
    def fractions(self) -> dict[SplitName, float]:
        """The fraction of the images that each split gets."""
        return {"train": self.train, "val": self.val, "test": self.test}


class SourceSpec(BaseModel):
    """How the files of a dataset are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="the folder, relative to the card file")
    format: Literal["pictures", "dicom", "nifti"] = Field(description="kind of the files")
    images_as: Literal["slices", "volumes"] = Field(
        default="slices", description="of DICOM: whether an image is a slice or a whole series"
    )
    by_study: bool = Field(
        default=False, description="of DICOM: whether a study stands for a patient"
    )
    labels: Literal["folders", "csv", "masks", "dicom_seg", "none"] = Field(
        description="where the truth is: names of folders, a CSV table, files of masks of the same "
        "names, or DICOM-SEG files"
    )
    values: tuple[str, ...] = Field(
        default=(), description="the stored label of each class, in the order of `classes`"
    )
    csv: str = Field(default="", description="the CSV table, relative to `path`")
    columns: Columns | None = None
    images: str = Field(default="", description="name of the folders of images beside masks")
    masks: str = Field(default="", description="name of the folders of masks")
    mask_suffix: str = Field(default="", description="what a mask's name has after the image's")
    mask_values: tuple[int, ...] = Field(
        default=(), description="the stored value of each class of masks, in their order"
    )
    patient_before: str = Field(
        default="", description="the patient is what a file's name has before this text"
    )
    clip: bool = Field(
        default=False, description="whether values outside the native range are clipped to it"
    )
    scale: Literal["", "each"] = Field(
        default="", description="each: an image goes from its own lowest to its highest value"
    )
    only: tuple[str, ...] = Field(default=(), description="files that are read; empty = all")
    skip: tuple[str, ...] = Field(default=(), description="files that are left out")
    ids: Literal["file", "number"] = Field(
        default="file", description="how records name an image: by its file, or by its number"
    )
    split_names: dict[SplitName, str] = Field(
        default_factory=dict, description="what the data call each split"
    )
    draw: Draw | None = None

    def reads(self, name: str) -> bool:
        """Whether a file, relative to the folder, is not left out."""
        return name not in self.skip and (not self.only or name in self.only)

    @model_validator(mode="after")
    def _complete(self) -> SourceSpec:
        if self.labels == "csv" and (not self.csv or self.columns is None):
            raise ValueError("expected csv and [source.columns] where labels is 'csv'")
        if self.labels == "masks" and not self.masks + self.mask_suffix:
            raise ValueError("expected masks or mask_suffix where labels is 'masks'")
        if bool(self.split_names) == (self.draw is not None):
            raise ValueError("expected either split_names or [source.draw]")
        if self.images_as == "volumes" and self.format != "dicom":
            raise ValueError("expected images_as = 'volumes' with DICOM alone: series are volumes")
        return self


@dataclass(frozen=True)
class CardFile:
    """A card file.

    Attributes:
        path: where it is, links followed.
        card: the dataset's card.
        source: how its files are read.
        keeps_sizes: whether each image keeps its own size; the size in the card is then that of
            the largest image, once the images are listed.
    """

    path: Path
    card: DatasetCard
    source: SourceSpec
    keeps_sizes: bool = False

    @property
    def root(self) -> Path:
        """The folder of the data."""
        return (self.path.parent / self.source.path).resolve()


def read_card_file(path: Path) -> CardFile:
    """Return the card and the source that a file such as `mine.toml` states.

    Raises:
        DataError: there is no such file, or it is no TOML text.
        SpecError: a setting is missing, unknown or wrong.
    """
    check_name(path)
    try:
        if path.stat().st_size > MAX_TEXT:
            raise DataError(f"{path}: expected a card file of at most {MAX_TEXT} bytes")
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no readable file"
        raise DataError(
            f"{path}: expected a card file, got {reason}: write one with "
            "`python -m robustbench_med inspect FOLDER`"
        ) from None
    return parse(text, path)


def parse(text: str, path: Path) -> CardFile:
    """Return the card file that a text states; see `read_card_file`."""
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected TOML, got: {' '.join(str(error).split())}") from None
    source = fields.pop("source", None)
    if not isinstance(source, dict):
        raise SpecError(
            f"{path}: expected a table [source], which says how files are read, got none: write "
            "it with `python -m robustbench_med inspect FOLDER`"
        )
    for key in _OURS:
        if key in fields:
            raise SpecError(f"{path}: expected no {key!r}: only shipped cards state it")
    keeps_sizes = _check_size(fields, path)
    if source.get("scale") == "each":
        _check_each(fields, path)
    card = validate(DatasetCard, {"name": path.stem, **fields}, str(path))
    spec = validate(SourceSpec, source, f"{path}: [source]")
    return CardFile(path.resolve(), card, spec, keeps_sizes)


def _check_each(fields: dict[str, Any], path: Path) -> None:
    """State that each image has a range of its own; refuse a common one beside it.

    Raises:
        SpecError: the card states a common range.
    """
    if "native" in fields or fields.setdefault("native_range", EACH) != EACH:
        key = "[native]" if "native" in fields else "native_range"
        raise SpecError(
            f'{path}: expected {key} or scale = "each" in [source], which gives each image a range '
            f"of its own, got both: delete {key}, or delete scale to read all images by it"
        )


def _check_size(fields: dict[str, Any], path: Path) -> bool:
    """Return whether the card states that each image keeps its own size.

    Raises:
        SpecError: it states no size.
    """
    if "sizes" in fields:
        raise SpecError(f"{path}: expected no 'sizes': size = \"{NATIVE}\" finds them")
    size = fields.get("size")
    if size == NATIVE:
        fields["size"] = [1, 1]  # that of the largest image is filled in when images are listed
        return True
    sides = size if isinstance(size, list) and len(size) in (2, 3) else [0]
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        got = "none" if size is None else repr(size)
        raise SpecError(
            f"{path}: expected size = [h, w], or [d, h, w] of volumes, to which the reader resizes "
            f'images, or size = "{NATIVE}", where each keeps its own, got {got}'
        )
    return False
