"""A model behind an address: asked by requests, with retries and a cap, and without gradients."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models.deployed import server_identity
from robustbench_med.models.deployed.arranged import Arranged, layout_of
from robustbench_med.models.deployed.inference_protocol import (
    JSON_LENGTH,
    Metadata,
    TensorInfo,
    read_metadata,
    read_outputs,
    read_version,
    request_of,
)
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    first_line,
    library,
)
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.types import Images

MAX_REQUESTS = "ROBUSTBENCH_MED_MAX_REQUESTS"
REQUESTS_OF_RUN = "ROBUSTBENCH_MED_REQUESTS_OF_RUN"  # folder in which all processes count
TOKEN = "ROBUSTBENCH_MED_SERVER_TOKEN"  # noqa: S105 - the name of a variable
LARGEST_ANSWER = 2**28  # bytes
_ADDRESS = re.compile(r"https?://[^/\s]+/v2/models/[\w.-]+(/versions/\w+)?")
_AGAIN = (408, 429, 500, 502, 503, 504)  # states that may pass
_WAIT = 0.25  # seconds before the first retry; each further one waits twice as long
_FLOATS = {"FP16": torch.float16, "FP32": None, "FP64": torch.float64, "UINT8": torch.uint8}
_spent: dict[str, int] = {}  # requests of this process, by address
_lock = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """How a server is asked.

    Attributes:
        batch: images in one request.
        concurrency: requests at once.
        timeout: seconds that an answer may take.
        retries: how often a request is sent again.
        max_requests: requests that this process may send, retries included; None = any number.
        binary: whether tensors are sent as bytes.
        ca: file with the certificate of the authority that signed the server's; "" = the system's.
    """

    batch: int = 16
    concurrency: int = 4
    timeout: float = 30.0
    retries: int = 4
    max_requests: int | None = None
    binary: bool = False
    ca: str = ""

    def __post_init__(self) -> None:
        whole = {"batch": 1, "concurrency": 1, "retries": 0, "max_requests": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and name == "max_requests":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"expected {name} >= {least}, got {value!r}")
        if not isinstance(self.timeout, int | float) or not self.timeout > 0:
            raise SpecError(f"expected timeout > 0 seconds, got {self.timeout!r}")


class Server(nn.Module):
    """A model of the Open Inference Protocol v2, as a module without gradients.

    Args:
        address: its address, up to the model's name.
        limits: how it is asked.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        super().__init__()
        self.address, self.limits = address, limits
        self.input: TensorInfo | None = None
        self.outputs: tuple[str, ...] = ()
        self.version = ""  # of the model, as its first answer states it
        self.fixed: int | None = None  # the number of images that each request must have
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def metadata(self) -> tuple[Metadata, bytes]:
        """Return the inputs and outputs of the model, and the answer that says so."""
        content, _ = self._send("GET", "")
        return read_metadata(self.address, content), content

    def forward(self, x: Images) -> Tensor | dict[str, Tensor]:
        """Return the output of the model, or its outputs by their names."""
        pieces = x.detach().cpu().split(self.fixed or self.limits.batch)
        if len(pieces) == 1:
            answers = [self._infer(pieces[0])]
        else:
            with ThreadPoolExecutor(self.limits.concurrency) as pool:
                answers = list(pool.map(self._infer, pieces))
        joined = {
            name: torch.from_numpy(np.concatenate([answer[name] for answer in answers])).to(
                x.device
            )
            for name in answers[0]
        }
        return next(iter(joined.values())) if len(joined) == 1 else joined

    def _infer(self, x: Tensor) -> dict[str, Any]:
        if self.input is None:
            raise RuntimeError("expected a server whose metadata has been read")
        n, missing = len(x), 0 if self.fixed is None else self.fixed - len(x)
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        body, headers = request_of(
            self.input, filled.contiguous().numpy(), self.outputs, binary=self.limits.binary
        )
        content, length = self._send("POST", "/infer", body, headers)
        outputs = read_outputs(self.address, content, length, len(filled))
        self.version = self.version or read_version(content, length)
        return {name: value[:n] for name, value in outputs.items()}

    def _send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[bytes, str | None]:
        """Return the body of an answer, and the length of its JSON if tensors follow it."""
        client, httpx = self._open(), library("httpx", self.address)
        reason = ""
        for attempt in range(self.limits.retries + 1):
            if attempt:
                time.sleep(_WAIT * 2 ** (attempt - 1))
            self._count()
            try:
                with client.stream(
                    method, self.address + path, content=body or None, headers=headers
                ) as response:
                    content = self._read(response)
            except httpx.TransportError as error:
                reason = f"{self._reason(error)}: is it running, and is its address right?"
                continue
            if response.status_code == 200:
                return content, response.headers.get(JSON_LENGTH)
            said = " ".join(content[:200].decode("utf-8", "replace").split())
            reason = f"state {response.status_code} {said}".strip()
            if response.status_code not in _AGAIN:
                break
        raise VictimError(f"{self.address}: expected an answer, got {reason}")

    def _count(self) -> None:
        """Count a request, or raise VictimError if there were as many as are allowed."""
        named, whole = os.environ.get(MAX_REQUESTS, ""), os.environ.get(REQUESTS_OF_RUN, "")
        of_run = int(named) if named.isdecimal() else None
        with _lock:
            _spent[self.address] = _spent.get(self.address, 0) + 1
            spent = [(self.limits.max_requests, _spent[self.address])]
            spent.append((of_run, self._of_all(Path(whole)) if whole else _spent[self.address]))
        for allowed, count in spent:
            if allowed is not None and count > allowed:
                raise VictimError(
                    f"{self.address}: expected at most {allowed} requests (--max-requests), and "
                    "all were sent: allow more, or take fewer images (-n) or queries"
                )

    def _of_all(self, folder: Path) -> int:
        """Count a request of all processes of a run, and return how many there were with it.

        Each appends a byte to one file; where its own byte ends is the number of all.
        """
        name = hashlib.sha256(self.address.encode()).hexdigest()[:32]
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, b".")
            return os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)

    def _read(self, response: Any) -> bytes:  # noqa: ANN401
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > LARGEST_ANSWER:
                raise VictimError(
                    f"{self.address}: expected at most 256 MiB in an answer, got more"
                )
        return bytes(content)

    def _reason(self, error: Exception) -> str:
        """Return what went wrong with a connection."""
        text = first_line(error)
        if "CERTIFICATE_VERIFY_FAILED" in text or isinstance(error.__cause__, ssl.SSLError):
            # no retry makes a certificate valid
            raise VictimError(
                f"{self.address}: expected a certificate that can be verified, got: {text}: name "
                "the file of its authority with ca='FILE.pem'"
            ) from None
        if "imeout" in type(error).__name__:
            return f"none within {self.limits.timeout:g} s (timeout=)"
        return f"none: {text}"

    def _open(self) -> Any:  # noqa: ANN401
        if self._client is None:
            httpx = library("httpx", self.address)
            token = os.environ.get(TOKEN)
            self._client = httpx.Client(
                timeout=self.limits.timeout,
                verify=self._authority(),
                headers={"Authorization": f"Bearer {token}"} if token else {},
                limits=httpx.Limits(max_connections=self.limits.concurrency),
            )
            weakref.finalize(self, self._client.close)
        return self._client

    def _authority(self) -> Any:  # noqa: ANN401 - True, or a context of ssl
        if not self.limits.ca:
            return True
        try:
            return ssl.create_default_context(cafile=self.limits.ca)
        except (OSError, ssl.SSLError) as error:
            raise VictimError(
                f"{self.limits.ca}: expected a file of certificates, got: {error}"
            ) from None


def load_server(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the model behind an address, which is attacked by queries only.

    Args:
        source: the address and the fields of Limits.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised; none of them is sent.

    Raises:
        VictimError: there is no such model, or it does not read such images.
    """
    own = tuple(Limits.__dataclass_fields__)
    check_parameters("a server", source.parameters, own)
    _check_address(source.place)
    limits = Limits(**{key: value for key, value in source.parameters.items() if key in own})
    server = Server(source.place, limits)
    metadata, described = server.metadata()
    server.input, module, notes = _arranged(server, metadata, data)
    server.outputs = tuple(info.name for info in metadata.outputs)
    answers, steady = server_identity.identify(module, data)
    notes.append(server_identity.APPROXIMATE if steady else server_identity.UNSTEADY)
    return Network(
        module=module,
        sha256=hashlib.sha256(described + server.version.encode() + answers).hexdigest(),
        family="server",
        builder="server",
        notes=("queries only: a server gives no gradient", *notes),
        queries_only=True,
    )


def _check_address(address: str) -> None:
    if not _ADDRESS.fullmatch(address):
        raise VictimError(f"expected http://HOST:PORT/v2/models/NAME, got {address!r}")
    if "@" in address:
        raise VictimError(
            f"expected an address without a password, which records would show: set {TOKEN} instead"
        )


def _arranged(
    server: Server, metadata: Metadata, data: DatasetCard
) -> tuple[TensorInfo, Arranged, list[str]]:
    """Return the input of the images, and the server as it is asked."""
    if len(metadata.inputs) != 1:
        names = ", ".join(info.name for info in metadata.inputs) or "none"
        raise VictimError(
            f"{server.address}: expected one input, the images, got "
            f"{len(metadata.inputs)} ({names})"
        )
    (info,) = metadata.inputs
    if info.datatype not in _FLOATS:
        raise VictimError(
            f"{server.address}: expected an input of type {' or '.join(_FLOATS)}, got "
            f"{info.datatype} for {info.name!r}"
        )
    sides = [None if side < 0 else side for side in info.shape]
    server.fixed, channels_last = layout_of(server.address, sides, data)
    notes = ["the network reads channels last"] if channels_last else []
    if info.datatype == "UINT8":
        notes.append("the network reads whole grey levels 0..255: images are rounded to them")
    classes_last = channels_last and data.task == "segmentation"
    dtype = _FLOATS[info.datatype]
    module = Arranged(server, channels_last=channels_last, classes_last=classes_last, dtype=dtype)
    return info, module, notes
