"""Recognise the text of a deployed model: `KIND:PLACE(key=value, ...)`, a bare file, or an address.

Nothing heavy is imported here: `list`, `show` and `--help` read names too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med import spec
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.paths import check_name

KINDS = ("onnx", "torchscript", "exported", "hf", "xrv", "bundle", "nnunet")
ENDINGS = {
    ".onnx": "onnx",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".pt": "torchscript",
    ".pt2": "exported",
}


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
    places = [text, *(text[: bracket.start()] for bracket in re.finditer(r"\(", text))]
    for place in places:
        ending = Path(place).suffix.lower()
        if ending in ENDINGS and not set("='\"") & set(place):
            return Deployed(ENDINGS[ending], *_split(text))
    return None


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return a place and the parameters after it; a file may have brackets in its name."""
    if not text.endswith(")") or _exists(text):
        return text, {}
    failure: SpecError | None = None
    for bracket in re.finditer(r"\(", text):
        place = text[: bracket.start()]
        try:
            return place, spec.parse(f"model{text[bracket.start() :]}").parameters
        except SpecError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return text, {}


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError):  # a name that no file system accepts
        return False
