"""Servers of the Open Inference Protocol v2: known answers, and every way in which one fails."""

from __future__ import annotations

import json
import os
import shlex
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trustme

import robustbench_med as rm
from robustbench_med import cli
from robustbench_med.cli.choices import limited_requests
from robustbench_med.errors import BenchError, SpecError, VictimError
from robustbench_med.models.deployed import server as serving
from robustbench_med.models.load import load_victim
from tests.bench.toys import save_npz
from tests.docs.pages import blocks
from tests.models.truth import CLEAN, SCORES, SIDE, W, X, Y, labels

EPS = 0.003
EXACT = float(((SCORES.abs() > EPS * W.abs().sum()) & ((SCORES > 0) == (Y == 1))).float().mean())
BINARY = "Inference-Header-Content-Length"


class Model:
    """What the server answers; tests change it."""

    def __init__(self) -> None:
        self.datatype, self.shape = "FP32", [-1, 1, SIDE, SIDE]
        self.weights, self.softmax = W.double().numpy(), True
        self.failures: list[int | bytes | float] = []  # states, bodies or seconds, first to last
        self.die_after: int | None = None
        self.asked, self.largest, self.at_once, self.most = 0, 0, 0, 0
        self.waits = False  # for a second request, before the first is answered
        self.extra: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.version = "3"

    def metadata(self) -> dict[str, Any]:
        image = {"name": "image", "datatype": self.datatype, "shape": self.shape}
        outputs = [{"name": "p", "datatype": "FP32", "shape": [-1, 2]}]
        return {"name": "truth", "inputs": [image, *self.extra], "outputs": outputs}

    def answer(self, x: Any) -> Any:  # noqa: ANN401 - an array
        if self.datatype == "UINT8":
            x = x / 255
        z = (x.reshape(len(x), -1) - 0.5) @ self.weights
        logits = np.stack([-z / 2, z / 2], 1)
        p = np.exp(logits - logits.max(1, keepdims=True))
        return (p / p.sum(1, keepdims=True) if self.softmax else logits).astype("<f4")


class Handler(BaseHTTPRequestHandler):
    """Speaks the protocol, in JSON and in bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536
    model: Model

    def log_message(self, *_: Any) -> None: ...  # noqa: ANN401

    def do_GET(self) -> None:
        self.model.tokens.append(self.headers.get("Authorization", ""))
        if self.path != "/v2/models/truth":
            return self.reply(json.dumps({"error": "no such model"}).encode(), state=404)
        return self.reply(json.dumps(self.model.metadata()).encode())

    def do_POST(self) -> None:
        model = self.model
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        model.asked += 1
        if model.die_after is not None and model.asked > model.die_after:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if model.failures:
            failure = model.failures.pop(0)
            if isinstance(failure, bytes):
                return self.reply(failure)
            if isinstance(failure, float):
                time.sleep(failure)
            else:
                return self.reply(b"busy", state=failure)
        model.at_once += 1
        model.most = max(model.most, model.at_once)
        end = time.monotonic() + 10
        while model.waits and model.most < 2 and time.monotonic() < end:
            time.sleep(0.001)
        head = int(self.headers.get(BINARY) or len(raw))
        request = json.loads(raw[:head])
        (image,) = request["inputs"]
        dtype = {"FP32": "<f4", "UINT8": "u1", "FP16": "<f2"}[image["datatype"]]
        sent = np.frombuffer(raw[head:], dtype) if head < len(raw) else np.array(image["data"])
        x = sent.reshape(image["shape"]).astype(float)
        model.largest = max(model.largest, len(x))
        p = model.answer(x)
        output: dict[str, Any] = {"name": "p", "datatype": "FP32", "shape": list(p.shape)}
        model.at_once -= 1
        if request["outputs"][0].get("parameters", {}).get("binary_data"):
            output["parameters"] = {"binary_data_size": p.nbytes}
            answer = {"model_version": model.version, "outputs": [output]}
            text = json.dumps(answer).encode()
            return self.reply(text + p.tobytes(), length=len(text))
        output["data"] = p.ravel().tolist()
        answer = {"model_version": model.version, "outputs": [output]}
        return self.reply(json.dumps(answer).encode())

    def reply(self, body: bytes, *, state: int = 200, length: int | None = None) -> None:
        self.send_response(state)
        self.send_header("Content-Length", str(len(body)))
        if length is not None:
            self.send_header(BINARY, str(length))
        self.end_headers()
        self.wfile.write(body)


class Served:
    """A running server."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.model = Model()
        handler = type("Own", (Handler,), {"model": self.model})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self.server.server_port}/v2/models/truth"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask this machine alone, and wait no longer than needed."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(serving.MAX_REQUESTS, raising=False)
    monkeypatch.setattr(serving, "_WAIT", 0.001)
    monkeypatch.setattr(serving, "_spent", {})


@pytest.fixture
def served() -> Iterator[Served]:
    running = Served()
    yield running
    running.close()


def margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_answers_are_those_of_the_model(served: Served, binary: bool, softmax: bool) -> None:
    served.model.softmax = softmax
    model = rm.load_model(f"{served.address}(binary={binary})", dataset=labels())
    served.model.waits = True
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-3, atol=1e-3)
    assert model.card.queries_only
    assert model.card.title == "truth (queries only)"
    assert "queries only: a server gives no gradient" in model.card.notes
    assert served.model.largest <= 16
    assert served.model.most > 1  # several requests at once


@pytest.mark.parametrize("shape", [[-1, SIDE, SIDE, 1], [4, 1, SIDE, SIDE]])
def test_layouts_and_fixed_batches(served: Served, shape: list[int]) -> None:
    served.model.shape = shape
    model = rm.load_model(served.address, dataset=labels())
    for n in (1, 6):
        logits = model(X[:n]).logits
        torch.testing.assert_close(margin(logits), SCORES[:n], rtol=1e-3, atol=1e-3)
    assert served.model.largest == (4 if shape[0] == 4 else 6)


def test_whole_grey_levels(served: Served) -> None:
    served.model.datatype = "UINT8"
    model = rm.load_model(served.address, dataset=labels())
    rounded = (255 * X).round() / 255
    expected = (rounded.flatten(1) - 0.5) @ W
    torch.testing.assert_close(margin(model(X).logits), expected, rtol=1e-3, atol=1e-3)
    assert any("rounded" in note for note in model.card.notes)


def test_an_attack_by_queries_and_none_by_gradients(served: Served) -> None:
    data = labels()
    result = rm.evaluate(
        f"{served.address}(binary=True)",
        data,
        "square(queries=15)",
        eps=EPS,
        operating_point="argmax",
    )
    assert result.clean == pytest.approx(CLEAN)
    assert EXACT <= result.accuracy < CLEAN
    assert not result.flags
    decided = rm.evaluate(
        f"{served.address}(binary=True)",
        data,
        "rays(queries=60)",
        eps=EPS,
        operating_point="argmax",
    )
    assert EXACT <= decided.accuracy < CLEAN
    with pytest.raises(VictimError, match="expected attacks by queries on a model without grad"):
        rm.evaluate(served.address, data, "pgd", eps=EPS)


def test_the_hash_is_of_metadata_and_answers(served: Served) -> None:
    data = labels().card
    first = load_victim(served.address, data)
    assert load_victim(served.address, data).sha256 == first.sha256
    served.model.weights = -served.model.weights
    assert load_victim(served.address, data).sha256 != first.sha256
    served.model.weights = -served.model.weights
    served.model.version = "4"
    assert load_victim(served.address, data).sha256 != first.sha256
    assert any("answers to fixed images alone" in note for note in first.card.notes)


# --- servers that fail ----------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(served: Served) -> None:
    served.model.failures = [503, 429, 500]
    model = rm.load_model(served.address, dataset=labels())
    torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-3, atol=1e-3)


def asked(served: Served, *failures: int | bytes | float, **limits: object) -> str:
    """Return the one line that a failing server costs."""
    served.model.failures = list(failures)
    inside = ", ".join(f"{key}={value!r}" for key, value in limits.items())
    with pytest.raises(BenchError) as error:
        load_victim(f"{served.address}({inside})" if inside else served.address, labels().card)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_each_failure_is_one_line(served: Served) -> None:
    assert "expected an answer, got state 400 busy" in asked(served, 400)
    assert served.model.asked == 1  # what cannot pass is not tried again
    assert "got state 503 busy" in asked(served, *[503] * 9, retries=1)
    assert "got none within 0.05 s" in asked(served, *[0.3] * 9, retries=1, timeout=0.05)
    assert "expected JSON" in asked(served, b"<html>")
    assert "expected outputs of the Open Inference" in asked(served, b"{}")
    short = {"outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [1.0]}]}
    assert "expected 'p' for 1 images, got 1 numbers" in asked(served, json.dumps(short).encode())
    texts = {"outputs": [{"name": "p", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    assert "expected an output of numbers" in asked(served, json.dumps(texts).encode())
    served.model.shape = [-1, 3, 224, 224]
    assert "expected a network that reads 1 x 16 x 16 images" in asked(served)
    served.model.extra = [{"name": "age", "datatype": "FP32", "shape": [-1, 1]}]
    assert "expected one input, the images, got 2 (image, age)" in asked(served)
    served.model.extra, served.model.datatype = [], "BYTES"
    assert "got BYTES for 'image'" in asked(served)


def test_an_answer_too_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LARGEST_ANSWER", 10)
    assert "expected at most 256 MiB in an answer" in asked(served)


def test_no_model_and_no_server(served: Served) -> None:
    with pytest.raises(VictimError, match="got state 404"):
        load_victim(served.address.replace("truth", "other"), labels().card)
    served.close()
    with pytest.raises(VictimError, match="expected an answer, got none: "):
        load_victim(f"{served.address}(retries=1)", labels().card)
    served.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.thread = threading.Thread(target=served.server.serve_forever, args=(0.01,), daemon=True)
    served.thread.start()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1/models/x", "expected http://HOST:PORT/v2/models/NAME"),
        ("http://me:secret@127.0.0.1:1/v2/models/x", "expected an address without a password"),
        ("http://127.0.0.1:1/v2/models/x(batch=0)", "expected batch >= 1, got 0"),
        ("http://127.0.0.1:1/v2/models/x(timeout=-1)", "expected timeout > 0 seconds"),
        ("http://127.0.0.1:1/v2/models/x(speed=2)", "expected a parameter in batch"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        load_victim(address, labels().card)
    assert issubclass(SpecError, BenchError)


def test_a_server_that_dies_costs_its_case(served: Served) -> None:
    loaded = rm.load_model(served.address, dataset=labels())
    assert loaded.card.queries_only
    served.model.die_after = served.model.asked + 30
    with pytest.raises(BenchError, match="/v2/models/truth: expected an answer, got none"):
        rm.evaluate(
            f"{served.address}(retries=1)",
            labels(),
            "square(queries=20)",
            eps=EPS,
            operating_point="argmax",
        )


def test_requests_are_capped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VictimError, match=r"at most 5 requests \(--max-requests\)"):
        load_victim(f"{served.address}(max_requests=5)", labels().card)
    assert served.model.asked == 4  # the first request is for the metadata
    monkeypatch.setattr(serving, "_spent", {})
    monkeypatch.setenv(serving.MAX_REQUESTS, "3")
    with pytest.raises(VictimError, match=r"at most 3 requests"):
        load_victim(served.address, labels().card)


def test_processes_of_a_run_share_a_cap(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(serving.MAX_REQUESTS, "1000")
    monkeypatch.setenv(serving.REQUESTS_OF_RUN, str(tmp_path))
    load_victim(served.address, labels().card)
    asked = served.model.asked + 1  # the first request is for the metadata
    (counted,) = tmp_path.iterdir()
    assert counted.stat().st_size == asked
    monkeypatch.setattr(serving, "_spent", {})  # as in another process
    monkeypatch.setenv(serving.MAX_REQUESTS, str(asked + 2))
    with pytest.raises(VictimError, match=rf"at most {asked + 2} requests"):
        load_victim(served.address, labels().card)
    assert served.model.asked == asked - 1 + 1  # of the two requests one was for the metadata


def test_a_cap_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serving.MAX_REQUESTS, raising=False)
    with limited_requests(7, "processes"):
        assert os.environ[serving.MAX_REQUESTS] == "7"
        folder = Path(os.environ[serving.REQUESTS_OF_RUN])
        assert folder.is_dir()
    assert serving.MAX_REQUESTS not in os.environ
    assert not folder.exists()
    with (
        pytest.raises(SpecError, match="with workers of this machine, got --executor dask"),
        limited_requests(7, "dask"),
    ):
        pass


def test_the_command_line_caps_them(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(serving.MAX_REQUESTS, "9999")  # restored afterwards
    save_npz(tmp_path / "mine.npz", n=4, side=SIDE)
    words = ["run", "--dataset", "mine.npz", "--model", served.address, "--eps", "1/255"]
    monkeypatch.setattr("sys.argv", ["robustbench_med", *words, "--max-requests", "7"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "expected at most 7 requests (--max-requests)" in capsys.readouterr().err


def test_the_command_of_the_page(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (command,) = (b.text for b in blocks("deployed_models.md") if "v2/models" in b.text)
    words = shlex.split(command.replace("\\\n", " "))
    words[words.index("--model") + 1] = served.address
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(serving.MAX_REQUESTS, "9999")  # restored afterwards
    save_npz(tmp_path / "mine.npz", n=4, side=SIDE)
    attack = ["--attack", "square(queries=5)"]
    monkeypatch.setattr("sys.argv", ["robustbench_med", *words[3:], *attack])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "truth (queries only)" in capsys.readouterr().out


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    served = Served(context)
    try:
        with pytest.raises(VictimError, match="expected a certificate that can be verified") as e:
            load_victim(served.address, labels().card)
        assert "\n" not in str(e.value)
        assert "ca='FILE.pem'" in str(e.value)
        pem = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(pem))
        monkeypatch.setenv(serving.TOKEN, "abc")
        model = rm.load_model(f"{served.address}(ca='{pem}')", dataset=labels())
        torch.testing.assert_close(margin(model(X).logits), SCORES, rtol=1e-3, atol=1e-3)
        assert served.model.tokens[-1] == "Bearer abc"
        assert "abc" not in str(model.card)
        pem.write_text("nothing")
        with pytest.raises(VictimError, match="expected a file of certificates"):
            load_victim(f"{served.address}(ca='{pem}')", labels().card)
    finally:
        served.close()
