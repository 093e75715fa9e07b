"""Outcome: what a published protocol did to each image, stored as one gzipped JSON file a study."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_med.errors import ResultsError
from robustbench_med.files import locked, write_bytes
from robustbench_med.studies.study import Published

FOLDER = "as_published"  # below the results folder


class Outcome(BaseModel):
    """What a victim said of clean and attacked images, one entry an image."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    key: str = Field(description="hash of everything that the values depend on")
    measured: Published
    weights: tuple[str, str] = Field(description="SHA-256 of the victim and of the attacked model")
    kind: Literal["probability", "dice", "suspicion"]
    columns: tuple[str, ...] = Field(description="classes, regions of a mask, or one suspicion")
    samples: tuple[str, ...]
    patients: tuple[str, ...] | None = Field(description="None if they are not known")
    truth: tuple[int, ...] | None = Field(description="class ids; None for masks")
    clean: tuple[tuple[float, ...], ...] = Field(description="(n, k), as `kind` says")
    attacked: tuple[tuple[float, ...], ...] = Field(description="(n, k), as `clean`")
    linf: tuple[float, ...] = Field(description="largest change of a value of the image, 0..1")
    ssim: tuple[float, ...]
    outside: float = Field(ge=0, le=1, description="share of attacked values outside of [0,1]")
    seconds: float

    @property
    def patient_ids(self) -> NDArray[np.character] | None:
        """The patients as an array, `(n,)`."""
        return None if self.patients is None else np.array(self.patients)


class Outcomes(BaseModel):
    """The file of a study: outcomes by the id of their measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    study: str
    outcomes: dict[str, Outcome] = {}


def key_of(measured: Published, *parts: str) -> str:
    """Return the hash that says whether an outcome is still that of the measurement."""
    fields = measured.model_dump(mode="json", exclude={"reading"})
    return hashlib.sha256(json.dumps([fields, *parts]).encode()).hexdigest()[:16]


def path_of(results: Path, study: str) -> Path:
    """Return the file of a study's outcomes in a results folder."""
    return results / FOLDER / f"{study}.json.gz"


def write_outcome(outcome: Outcome, results: Path, study: str, name: str) -> Path:
    """Write the outcome of one measurement into a results folder, in one step."""
    path = path_of(results, study)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        others = read_outcomes(results, study)
        stored = Outcomes(study=study, outcomes={**others, name: outcome})
        text = stored.model_dump_json() + "\n"
        return write_bytes(path, gzip.compress(text.encode(), mtime=0))


def read_outcomes(results: Path, study: str) -> dict[str, Outcome]:
    """Return the stored outcomes of a study by the id of their measurement.

    Raises:
        ResultsError: the file is damaged.
    """
    path = path_of(results, study)
    try:
        return Outcomes.model_validate_json(gzip.decompress(path.read_bytes())).outcomes
    except FileNotFoundError:
        return {}
    except (ValidationError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ResultsError(
            f"{path}: expected the outcomes of published protocols, got a damaged file "
            f"({str(error).splitlines()[0]}): delete it and run the study again"
        ) from None
