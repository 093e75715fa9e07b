"""Write the adversarial images of a record as files, read them back, and judge them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustbench_med.bench import adversarial_images
from robustbench_med.bench.adversarial_images import Saved, collect_images
from robustbench_med.bench.attack_run import AttackRun, goal_of, run_attack
from robustbench_med.bench.record import Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup, SetupCache
from robustbench_med.bench.verified_run import run_verified
from robustbench_med.bench.verify.replay import Places, called_as, changed, replan
from robustbench_med.bench.verify.rounding import threads_of
from robustbench_med.cards import NativeRange
from robustbench_med.devices import device_of
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.export import dicom_files, nifti_files, png_files
from robustbench_med.export.form import Form, Mark, form_of
from robustbench_med.export.read_back import read_back
from robustbench_med.files import write_text
from robustbench_med.models.preprocess import parse_preprocess
from robustbench_med.native_units import GREY, to_image_radius
from robustbench_med.stored_images import joined

Kind = Literal["dicom", "nifti", "png"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MANIFEST = "export.json"  # beside the files


class _Writer(NamedTuple):
    check: Callable[[Form], None]
    write: Callable[[NDArray[np.int64], Form, Mark, Path], list[Path]]


_WRITERS: dict[Kind, _Writer] = {
    "dicom": _Writer(dicom_files.check, dicom_files.write),
    "nifti": _Writer(nifti_files.check, nifti_files.write),
    "png": _Writer(png_files.check, png_files.write),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedImage(_Frozen):
    """One exported image. Which source image it was made from stands in the record alone."""

    files: tuple[str, ...] = Field(description="below the folder of the export")
    sample: int = Field(description="place of its sample among those of the record, from 0")
    largest_change: float = Field(description="of a stored value, in its unit")
    within_budget: bool = Field(description="whether no stored value moved by more than the radius")
    succeeds: bool = Field(description="whether the attack succeeds with the image in the file")


class Manifest(_Frozen):
    """What an export holds; `export.json` beside the files."""

    warning: str = "These images were changed on purpose to mislead a model. Not for clinical use."
    case_id: str
    attack: str
    eps: float = Field(description="radius in image units")
    unit: str = Field(description="unit of a stored value")
    native: NativeRange = Field(description="stored values behind 0 and 1, and their step")
    written: int = Field(description="number of images")
    succeed: int = Field(description="how many of them still mislead the model from the file")
    over_budget: int = Field(
        description="how many moved some value by more than the radius, by rounding"
    )
    placed: int = Field(
        description="how many have the orientation and the origin of their source, where it states "
        "these; the others have the card's spacing in a frame of their own"
    )
    images: tuple[ExportedImage, ...]


class _Chosen(NamedTuple):
    """The adversarial images of one radius.

    Attributes:
        saved: all adversarial images of the case.
        rung: index of the radius.
        rows: `(m,)` which of the attacked samples have one.
    """

    saved: Saved
    rung: int
    rows: Tensor

    @property
    def images(self) -> list[Tensor]:
        """The images, each `(c, *s)` in [0,1]; they may be of several sizes."""
        return [self.saved.image(i) for i in self.saved.which[self.rung][self.rows].tolist()]

    def replaced(self, images: list[Tensor]) -> Saved:
        """Return the saved images of a run that made only these, at this radius."""
        which = torch.full_like(self.saved.which, -1)
        which[self.rung, self.rows] = torch.arange(len(images), dtype=which.dtype)
        sizes = None
        if self.saved.sizes is not None:
            sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int32)
        return Saved(joined([image[None] for image in images]), which, sizes=sizes)


def export(
    stored: Stored,
    kind: str,
    out: Path,
    *,
    eps: str | None = None,
    data: Path | None = None,
    device: str = "cpu",
    code: bool = False,
    places: Places | None = None,
) -> Manifest:
    """Write the successful adversarial images of a record as files; of masks, all changed ones.

    They are rounded to stored values, written, read back, compared, and judged again. If no images
    were saved with the record, its case runs again.

    Args:
        stored: the record.
        kind: "dicom", "nifti" or "png".
        out: an empty or new folder.
        eps: one of the record's radii, in any unit that `run` takes; None = the largest.
        data: folder with the files of real datasets.
        device: as `run`.
        code: execute the Python file that the case names, if it names one.
        places: the present paths of your own files that the record names.

    Raises:
        SpecError: the kind or the radius is unknown.
        ResultsError: weights, data or versions are not those of the record, no image was changed,
            or the folder is not empty.
        DataError: files of this kind cannot hold the images.
        NotInstalledError: the library that writes them is missing.
    """
    if kind not in KINDS:
        raise SpecError(f"expected --as {', '.join(KINDS)}, got {kind!r}")
    writer = _WRITERS[kind]
    record = stored.record
    form = form_of(record.dataset_card)
    writer.check(form)
    rung = _rung_of(stored, eps)
    _make_folder(out)
    planned = replan(record.case, data=data, code=code, places=places)
    if lines := changed(record.case, called_as(record.case, planned.case)):
        raise ResultsError(f"expected what the record was made with, got a change: {lines[0]}")
    with threads_of(record.provenance):
        setup = SetupCache(device_of(device)).of(planned)
        chosen = _choose(_adversarial_images(stored, planned, setup), rung)
        if not len(chosen.rows):
            raise ResultsError(
                "expected a successful attack to export, got none at this radius: choose a larger "
                "one of the record with --eps"
            )
        mark = Mark(0, record.case_id, attack_words(stored, rung))
        forms = _placed(form, planned, setup, chosen)
        files = _write_all(chosen.images, forms, mark, writer, out)
        read = read_back(out, kind, files, forms)
        _check_equal(read, chosen.images, form, out)
        run = run_attack(planned, setup, saved=chosen.replaced(read))
    placed = sum(each.geometry is not None for each in forms) if kind != "png" else 0
    manifest = _manifest(stored, form, run, chosen, files, placed)
    write_text(out / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def attack_words(stored: Stored, rung: int) -> str:
    """Return what an attack does, e.g. "pgd, linf 0.00244 (10 HU)"."""
    case, native = stored.record.case, form_of(stored.record.dataset_card).native
    radius = stored.record.radii[rung]
    words = f"{case.attack.rpartition(':')[2]}, {case.norm} {radius:.4g}"
    if case.norm == "linf":
        size = f"{radius * (native.high - native.low):.4g}"
        words += f" ({size} {native.unit}{'s' if native.unit == GREY and size != '1' else ''})"
    return words


def _rung_of(stored: Stored, eps: str | None) -> int:
    """Return the index of a radius of the record.

    Raises:
        ResultsError: the record is invalid, or has no such radius.
    """
    record = stored.record
    if record.status != "ok" or not record.radii:
        raise ResultsError(
            f"expected a record with attacked images, got one that is {record.status}"
        )
    ladder = record.case.ladder
    if eps is None:
        return len(ladder) - 1
    steps = parse_preprocess(record.model_card.preprocess, record.dataset_card)
    radius = to_image_radius(eps, record.dataset_card, () if steps is None else steps.windows)
    for rung, known in enumerate(ladder):
        if abs(known - radius) <= 1e-6 * known:
            return rung
    listed = ", ".join(f"{known:.6g}" for known in ladder)
    raise SpecError(f"expected --eps to be a radius of the record ({listed}), got {eps}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ResultsError(f"expected an empty folder for --out, got {out}: choose another")
    except OSError as error:
        raise ResultsError(
            f"expected a folder that can be written for --out, got {out} ({error.strerror})"
        ) from None


def _adversarial_images(stored: Stored, planned: ResolvedCase, setup: AttackSetup) -> Saved:
    """Return the adversarial images saved beside a record, or those of a rerun."""
    if stored.record.images is not None:
        return adversarial_images.read(Path(stored.folder), stored.record.images)
    run = run_verified(planned, setup, keeps=True)
    masks = planned.data.card.task == "segmentation"
    return collect_images(run.rungs, run.problem, masks=masks)


def _choose(saved: Saved, rung: int) -> _Chosen:
    return _Chosen(saved, rung, (saved.which[rung] >= 0).nonzero()[:, 0])


def _placed(form: Form, planned: ResolvedCase, setup: AttackSetup, chosen: _Chosen) -> list[Form]:
    """Return the form of each image, with its place in the patient where its source states it.

    A geometry whose axes are not at right angles is left out: DICOM can't state it.
    """
    *_, attacked = goal_of(planned, setup)
    names = setup.batch.ids[attacked.cpu().numpy()][chosen.rows.numpy()]
    places = [planned.data.placed(planned.case.split, str(name)) for name in names]
    return [
        form._replace(geometry=place if place is not None and place.is_square else None)
        for place in places
    ]


def _write_all(
    images: list[Tensor], forms: list[Form], mark: Mark, writer: _Writer, out: Path
) -> list[tuple[str, ...]]:
    """Write images, rounded to stored values; return their files."""
    files = []
    for number, (image, form) in enumerate(zip(images, forms, strict=True), start=1):
        steps = (image * form.native.levels).round().numpy().astype(np.int64)
        paths = writer.write(steps, form, mark._replace(number=number), out)
        files.append(tuple(path.relative_to(out).as_posix() for path in paths))
    return files


def _check_equal(read: list[Tensor], images: list[Tensor], form: Form, out: Path) -> None:
    """Raise ResultsError unless files hold the rounded images to the last bit."""
    for back, image in zip(read, images, strict=True):
        if not torch.equal(back, (image * form.native.levels).round() / form.native.levels):
            raise ResultsError(f"expected {out} to hold what was written, got other values")


def _manifest(
    stored: Stored,
    form: Form,
    run: AttackRun,
    chosen: _Chosen,
    files: list[tuple[str, ...]],
    placed: int,
) -> Manifest:
    record, rung = stored.record, chosen.rung
    success = run.rungs["success"][rung][chosen.rows].cpu()
    size = run.rungs["size"][rung][chosen.rows].cpu()
    span = form.native.high - form.native.low
    tolerance = record.audit.tolerance if record.audit else 0.0
    inside = size <= record.radii[rung] * (1 + 1e-5) + tolerance
    places = run.attacked.nonzero()[:, 0].cpu()[chosen.rows]
    largest = run.rungs["linf"][rung][chosen.rows].cpu() * span
    images = tuple(
        ExportedImage(
            files=files[i],
            sample=int(places[i]),
            largest_change=round(float(largest[i]), 6),
            within_budget=bool(inside[i]),
            succeeds=bool(success[i]),
        )
        for i in range(len(files))
    )
    return Manifest(
        case_id=record.case_id,
        attack=attack_words(stored, rung),
        eps=record.radii[rung],
        unit=form.native.unit,
        native=form.native,
        written=len(images),
        succeed=sum(image.succeeds for image in images),
        over_budget=sum(not image.within_budget for image in images),
        placed=placed,
        images=images,
    )
