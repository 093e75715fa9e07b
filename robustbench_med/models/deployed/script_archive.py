"""Look into a TorchScript archive before it is loaded: it is a program, in a language of its own.

Its pickles are read by torch in C++, which knows tensors and the archive's own classes and calls
no Python. Its code cannot call Python either, but two operators of torch reach files: `save` writes
one, and `from_file` maps one into memory and may change it. Code that names them is refused, and so
is a `getattr` that could name them in disguise: torch itself writes `getattr(self, "0")`.
"""

from __future__ import annotations

import io
import re
import zipfile

from robustbench_med.errors import VictimError

LARGEST = 2**33  # bytes that an archive may unpack to
_FORBIDDEN = re.compile(r"\b(save|from_file|getattr)\b")
_PLAIN = re.compile(r"\bgetattr\(([\w.]+, \"[^\"\\]*\")\)")
_OPERATORS = re.compile(r"\bops\s*\.\s*(\w+)")
_KNOWN = {"aten", "prim", "prims", "quantized", "torchvision", "mkldnn_prepacked", "onednn"}


def is_script(raw: bytes) -> bool:
    """Return whether bytes are a TorchScript archive, and not another file of torch."""
    return any("/code/" in f"/{name}" for name in _names(raw))


def is_exported(raw: bytes) -> bool:
    """Return whether bytes are an archive of torch.export."""
    names = _names(raw)
    return any(
        name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names
    )


def _names(raw: bytes) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return []


def check_script(where: str, raw: bytes) -> None:
    """Raise VictimError if an archive is too large, or its code reaches files.

    Args:
        where: name of the file, for the message.
        raw: content of the file.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        check_unpacked(where, archive)
        for name in archive.namelist():
            if name.endswith(".py"):
                text = archive.read(name).decode("utf-8", "replace")
                _check_code(where, text)


def check_unpacked(where: str, archive: zipfile.ZipFile) -> None:
    """Raise VictimError if an archive unpacks to too much."""
    total = sum(entry.file_size for entry in archive.infolist())
    if total > LARGEST:
        raise VictimError(
            f"{where}: expected an archive of at most {LARGEST // 2**30} GiB, got one that unpacks "
            f"to {total / 2**30:.0f} GiB"
        )


def _check_code(where: str, text: str) -> None:
    forbidden = _FORBIDDEN.search(_PLAIN.sub(r"(\1)", text))
    if forbidden:
        raise VictimError(
            f"{where}: expected code that reaches no files, got TorchScript that calls "
            f"{forbidden[1]!r}"
        )
    for match in _OPERATORS.finditer(text):
        if match[1] not in _KNOWN:
            raise VictimError(
                f"{where}: expected operators of torch, got those of {match[1]!r}, which only a "
                "compiled library knows"
            )
