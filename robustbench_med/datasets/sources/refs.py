"""References to stored images: where each one is, and the shape that its header states."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robustbench_med.errors import DataError, NotInstalledError

MAX_VALUES = 2**28  # of one image; a CT of 512 x 512 x 700 voxels has 1.8e8
MAX_FILES = 2_000_000  # below one folder
Result = TypeVar("Result")
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class ImageRef:
    """One image that has not been decoded.

    Attributes:
        files: its files, relative to the folder of the data; of a volume one per slice, in order.
        size: `(h, w)` or `(d, h, w)` in pixels.
        channels: number of channels.
        dtype: type of the decoded values.
        frames: which frames of the first file, in order; empty = the file has no frames.
        spacing: mm per pixel along each axis, if the file states it.
        patient: a number in place of the patient that the file states; "" = it states none.
        mask: the file of a mask that refers to this image by itself, as DICOM-SEG does.
        facts: further properties of the file, such as ("window", "40/400"); never free text.
        grids: slope and intercept of its values, one pair for all slices that share it; empty = as
            stored, without a scale.
    """

    files: tuple[str, ...]
    size: tuple[int, ...]
    channels: int
    dtype: str
    frames: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    patient: str = ""
    mask: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    grids: tuple[tuple[float, float], ...] = ()

    @property
    def every_file(self) -> tuple[str, ...]:
        """The files that its values and its own mask come from."""
        return (*self.files, self.mask) if self.mask else self.files

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded array, channels last."""
        return self.size if self.channels == 1 else (*self.size, self.channels)


def times(size: Iterable[int]) -> str:
    """Return a size in words.

    >>> times((40, 48))
    '40x48'
    """
    return "x".join(map(str, size))


class UnreadableError(Exception):
    """A file that cannot be read; the text gives the reason and never a part of its content."""


def guarded(
    read: Callable[[], Result],
    words: Callable[[Exception], str],
    errors: tuple[type[Exception], ...] = (Exception,),
) -> Result:
    """Return what a function reads from a file; an error of its library becomes UnreadableError.

    The text of such an error is dropped: it may repeat what the file holds.

    Args:
        read: reads the file.
        words: returns what an error means, without its text.
        errors: the errors that a damaged file may raise.
    """
    try:
        return read()
    except (UnreadableError, NotInstalledError):
        raise
    except FileNotFoundError:
        raise UnreadableError("there is no such file") from None
    except MemoryError:
        raise UnreadableError("it states sizes that do not fit into memory") from None
    except errors as error:
        raise UnreadableError(words(error)) from None


def check_volume(shape: Iterable[int]) -> None:
    """Raise UnreadableError if an image of this shape is empty, or too large to be allocated."""
    sides = tuple(shape)
    if min(sides, default=0) < 1:
        raise UnreadableError(f"its header states the size {times(sides)}")
    if math.prod(sides) > MAX_VALUES:
        raise UnreadableError(f"its header states {times(sides)} values, more than {MAX_VALUES}")


def walk(root: Path) -> Iterator[str]:
    """Yield the files below a folder in sorted order, relative to it and with `/` between names.

    Hidden files and folders are left out, and links to folders are not followed.

    Raises:
        DataError: there is no such folder, or it holds too many files.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of the data, got no folder")
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        start = Path(folder).relative_to(root)
        for name in sorted(names):
            if not _is_hidden(name):
                count += 1
                if count > MAX_FILES:
                    raise DataError(f"{root}: expected at most {MAX_FILES} files")
                yield (start / name).as_posix()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db")


def inside(root: Path, name: str, where: str) -> Path:
    """Return the path of a file that a table or a card file names, which must be below the folder.

    Args:
        root: the folder of the data.
        name: the name, relative to it.
        where: file and row, for the error message.

    Raises:
        DataError: the name leads out of the folder.
    """
    fine = "\0" not in name and "\\" not in name and not Path(name).is_absolute()
    path = root / name if fine else root
    if not fine or ".." in Path(name).parts or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{where}: expected a file inside {root}, got {name[:80]!r}")
    return path


def check_link(root: Path, name: str) -> None:
    """Raise UnreadableError if a file is a link that leads out of the folder of the data."""
    path = root / name
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UnreadableError("it is a link to a file outside the folder")


def refuse_unreadable(failures: list[tuple[str, str]], total: int, root: Path) -> None:
    """Raise one DataError for all files that cannot be read.

    Args:
        failures: name and reason of each.
        total: the number of files that were tried.
        root: the folder of the data.
    """
    if not failures:
        return
    shown = "; ".join(f"{name}: {reason}" for name, reason in failures[:_SHOWN])
    more = f" and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    raise DataError(
        f"{root}: expected images that can be read, got {len(failures)} of {total} that cannot: "
        f"{shown}{more}; mend or remove them, or name them in `skip` of [source]"
    )


def read_each(
    root: Path, refs: Sequence[ImageRef], read: Callable[[Path, ImageRef], Result]
) -> list[Result]:
    """Return what `read` returns for each reference.

    Raises:
        DataError: files cannot be read; the message names them.
    """
    results, failures = [], []
    for ref in refs:
        try:
            results.append(read(root, ref))
        except UnreadableError as error:
            failures.append((ref.files[0], str(error)))
    refuse_unreadable(failures, len(refs), root)
    return results


def check_values(values: NDArray[Any]) -> None:
    """Raise UnreadableError if there is a NaN or an infinity among the values."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise UnreadableError(f"{count} of its {values.size} values are NaN or infinite")
