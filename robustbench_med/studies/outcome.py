"""Outcome: what a published protocol did to each image, stored as one JSON file a row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_med.errors import ResultsError
from robustbench_med.files import write_text
from robustbench_med.studies.study import Published

FOLDER = "as_published"  # below the results folder


class Outcome(BaseModel):
    """The answers of a victim to clean and attacked images, one entry an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    row: str
    key: str = Field(description="hash of everything that the answers depend on")
    measured: Published
    classes: tuple[str, ...]
    samples: tuple[str, ...]
    patients: tuple[str, ...] | None = Field(description="None if they are not known")
    truth: tuple[int, ...]
    clean: tuple[tuple[float, ...], ...] = Field(description="(n, k) softmax, no operating point")
    attacked: tuple[tuple[float, ...], ...] = Field(description="(n, k), as `clean`")
    linf: tuple[float, ...] = Field(description="largest change of a value of the image, 0..1")
    ssim: tuple[float, ...]
    outside: float = Field(ge=0, le=1, description="share of attacked values outside of [0,1]")
    seconds: float

    @property
    def patient_ids(self) -> NDArray[np.character] | None:
        """The patients as an array, `(n,)`."""
        return None if self.patients is None else np.array(self.patients)


def key_of(measured: Published, *parts: str) -> str:
    """Return the hash that says whether an outcome is still that of the row."""
    return hashlib.sha256(
        json.dumps([measured.model_dump(mode="json"), *parts]).encode()
    ).hexdigest()[:16]


def path_of(results: Path, study: str, row: str) -> Path:
    """Return the file of a row's outcome in a results folder."""
    return results / FOLDER / study / f"{row}.json"


def write_outcome(outcome: Outcome, results: Path) -> Path:
    """Write an outcome into a results folder, in one step."""
    path = path_of(results, outcome.study, outcome.row)
    return write_text(path, outcome.model_dump_json() + "\n")


def read_outcome(results: Path, study: str, row: str) -> Outcome | None:
    """Return the stored outcome of a row; None if there is none.

    Raises:
        ResultsError: the file is damaged.
    """
    path = path_of(results, study, row)
    try:
        return Outcome.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ResultsError(
            f"{path}: expected the outcome of a published protocol, got a damaged file "
            f"({str(error).splitlines()[0]}): delete it and run the study again"
        ) from None
