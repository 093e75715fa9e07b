"""Recognise the text of a deployed model: `KIND:PLACE(key=value, ...)`, a bare file, or an address.

Nothing heavy is imported here: `list`, `show` and `--help` read names too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med import spec
from robustbench_med.errors import VictimError
from robustbench_med.paths import check_name

KINDS = ("onnx", "torchscript", "exported")
ENDINGS = {
    ".onnx": "onnx",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".pt": "torchscript",
    ".pt2": "exported",
}
_PLACE = re.compile(r"(.*?)(\([^()]*\))?", re.DOTALL)


class Deployed(NamedTuple):
    """A deployed model.

    Attributes:
        kind: one of KINDS, or "server".
        place: the file, folder or address, as it was written.
        parameters: how it is read.
    """

    kind: str
    place: str
    parameters: dict[str, Any]

    @property
    def path(self) -> Path:
        """The file or folder.

        Raises:
            SpecError: no file system accepts the name.
        """
        return check_name(Path(self.place).expanduser())

    @property
    def title(self) -> str:
        """A short name for pages and tables."""
        return Path(self.place).name or self.place


def deployed_of(text: str) -> Deployed | None:
    """Return the deployed model that a text names; None if the text has another form.

    Raises:
        SpecError: its parameters are not `(key=value, ...)`.
        VictimError: the text names a kind and no place.

    >>> deployed_of("onnx:models/net.onnx(mean=[0.5], std=[0.25])").parameters["mean"]
    [0.5]
    >>> deployed_of("models/net.onnx").kind, deployed_of("timm:resnet18") is None
    ('onnx', True)
    """
    if text.startswith(("http://", "https://")):
        return Deployed("server", *_split(text))
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS:
        place, parameters = _split(rest)
        if not place:
            raise VictimError(f"expected {kind}:FILE, got {text!r}")
        return Deployed(kind, place, parameters)
    place, _ = _halves(text)
    ending = Path(place).suffix.lower()
    if ending not in ENDINGS:
        return None
    return Deployed(ENDINGS[ending], *_split(text))


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return a place and the parameters after it; a file may have brackets in its name."""
    place, bracket = _halves(text)
    if not bracket or _exists(text):
        return text, {}
    return place, spec.parse(f"model{bracket}").parameters


def _halves(text: str) -> tuple[str, str]:
    match = _PLACE.fullmatch(text)
    return (match[1], match[2] or "") if match else (text, "")


def _exists(text: str) -> bool:
    return "\0" not in text and len(text) < 4096 and Path(text).expanduser().exists()
