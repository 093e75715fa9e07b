"""Downloads from a local https server are verified before use, or leave no file behind."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import platformdirs
import pytest
import trustme

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets import load
from robustbench_med.datasets.cache import cache_dir
from robustbench_med.datasets.download import download
from robustbench_med.errors import ChecksumError, DataError

Save = Callable[..., Path]
Describe = Callable[..., DatasetCard]


class Server(NamedTuple):
    """A running https server, the context that trusts it and the certificate of its authority."""

    url: str
    context: ssl.SSLContext
    certificate: bytes
    files: dict[str, bytes]
    requests: list[str]


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path in self.files:
            content = self.files[self.path]
            self.send_response(200)
            if "unsaid" not in self.path:
                self.send_header("Content-Length", str(len(content) + 9 * ("cut" in self.path)))
            self.end_headers()
            self.wfile.write(content)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def _running() -> Iterator[Server]:
    authority = trustme.CA()
    private = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(private)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    handler = type("Handler", (_Handler,), {"files": {}, "requests": []})
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        server.socket = private.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"https://localhost:{server.server_port}"
        yield Server(url, context, authority.cert_pem.bytes(), handler.files, handler.requests)  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture
def server(_running: Server) -> Server:
    _running.files.clear()
    _running.requests.clear()
    return _running


@pytest.fixture
def served(server: Server, card_for: Describe) -> Describe:
    """Return a function that puts a file on the server and returns the card that points at it."""

    def serve(path: Path, at: str = "/toy.npz") -> DatasetCard:
        server.files[at] = path.read_bytes()
        return card_for(path, url=server.url + at)

    return serve


def left_behind() -> list[Path]:
    return list(cache_dir().iterdir()) if cache_dir().exists() else []


@pytest.mark.parametrize("at", ["/toy.npz", "/unsaid.npz", "/toy.npz?download=1"])
def test_a_file_is_downloaded_into_the_cache(
    server: Server, save: Save, served: Describe, at: str
) -> None:
    path = save()
    path_in_cache = download(served(path, at), context=server.context)
    assert path_in_cache == cache_dir() / "toy.npz"
    assert path_in_cache.read_bytes() == path.read_bytes()
    assert left_behind() == [path_in_cache]


def test_load_dataset_downloads_once(
    server: Server, save: Save, served: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authority.pem").write_bytes(server.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    (tmp_path / "empty").mkdir()
    with registry.register("datasets", served(save())):
        for _ in range(2):
            assert len(load.load_dataset("toy", data=tmp_path / "empty").batch("test")) == 4
    assert server.requests == ["/toy.npz"]


def test_a_redirect_to_https_is_followed(server: Server, save: Save, served: Describe) -> None:
    card = served(save())
    moved = card.model_copy(update={"url": f"{server.url}/to/{card.url}"})
    assert download(moved, context=server.context).exists()


def test_a_redirect_off_https_is_refused(
    server: Server, save: Save, served: Describe, tmp_path: Path
) -> None:
    card = served(save())
    targets = {
        "http://localhost:1/toy.npz": "expected an https address, got http://localhost:1",
        (tmp_path / "toy.npz").as_uri(): "Redirection to url 'file:.*' is not allowed",
    }
    for target, message in targets.items():
        moved = card.model_copy(update={"url": f"{server.url}/to/{target}"})
        with pytest.raises(DataError, match=message):
            download(moved, context=server.context)
    assert left_behind() == []


def test_redirects_without_end_are_refused(server: Server, save: Save, card_for: Describe) -> None:
    loop = card_for(save(), url=f"{server.url}/to/?")
    with pytest.raises(
        DataError, match="expected toy.npz in the folder of --data or from .* got: "
    ):
        download(loop, context=server.context)
    assert left_behind() == []


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_an_open_line_is_refused(save: Save, card_for: Describe, scheme: str) -> None:
    with pytest.raises(DataError, match=f"expected an https address, got {scheme}://"):
        download(card_for(save(), url=f"{scheme}://localhost/toy.npz"))
    assert left_behind() == []


def test_a_wrong_checksum_leaves_nothing_behind(
    server: Server, save: Save, served: Describe
) -> None:
    card = served(save())
    server.files["/toy.npz"] += b"\0"
    with pytest.raises(
        ChecksumError, match=f"toy: expected MD5 {card.md5} .* in https://localhost"
    ):
        download(card, context=server.context)
    assert left_behind() == []


def test_a_card_without_a_checksum_is_not_downloaded(
    server: Server, save: Save, served: Describe
) -> None:
    card = served(save()).model_copy(update={"md5": "", "sha256": ()})
    with pytest.raises(
        DataError, match="no file is downloaded without one; download toy.npz by hand"
    ):
        download(card, context=server.context)
    assert server.requests == []


def test_too_large_a_file_is_refused(server: Server, save: Save, served: Describe) -> None:
    path = save()
    for at in ("/toy.npz", "/unsaid.npz"):
        card = served(path, at)
        with pytest.raises(DataError, match="toy: expected at most 10 bytes from https://.*, got"):
            download(card, context=server.context, cap=10)
    assert left_behind() == []


def test_a_cut_connection_is_refused(server: Server, save: Save, served: Describe) -> None:
    with pytest.raises(DataError, match="the connection was cut; try again, or download toy.npz"):
        download(served(save(), "/cut.npz"), context=server.context)
    assert left_behind() == []


def test_an_absent_file_an_untrusted_and_a_closed_server(
    server: Server, save: Save, served: Describe
) -> None:
    card = served(save())
    gone = card.model_copy(update={"url": f"{server.url}/gone.npz"})
    with pytest.raises(
        DataError,
        match=r"got: .*Not Found; download toy\.npz by hand and pass its folder as --data",
    ):
        download(gone, context=server.context)
    with pytest.raises(DataError, match=r"got: .*CERTIFICATE_VERIFY_FAILED"):
        download(card)
    offline = card.model_copy(update={"url": "https://localhost:1/toy.npz"})
    with pytest.raises(DataError, match=r"got: .*refused"):
        download(offline, context=server.context)
    assert left_behind() == []


def test_a_server_that_never_answers(save: Save, card_for: Describe) -> None:
    with socket.create_server(("localhost", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/toy.npz"
        with pytest.raises(DataError, match=r"got: .*timed out"):
            download(card_for(save(), url=url), timeout=0.1)
    assert left_behind() == []


def test_a_cache_that_cannot_be_written(
    server: Server, save: Save, served: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "taken"))
    with pytest.raises(
        DataError,
        match="expected toy.npz in the folder of --data or from .* got: .*download toy.npz by hand",
    ):
        download(served(save()), context=server.context)


def test_the_cache_is_the_users_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_dir() == tmp_path / "cache" / "datasets"
    assert not cache_dir().exists()
    monkeypatch.delenv("ROBUSTBENCH_MED_CACHE")
    assert cache_dir() == platformdirs.user_cache_path("robustbench_med") / "datasets"
