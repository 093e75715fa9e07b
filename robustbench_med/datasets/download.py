"""Download datasets over https; check the checksum, then rename the file into the cache."""

from __future__ import annotations

import http.client
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.archive import MAX_BYTES
from robustbench_med.datasets.cache import cache_dir
from robustbench_med.datasets.checksum import CHUNK, Digests, compare
from robustbench_med.errors import DataError

TIMEOUT = 30.0  # seconds


def download(
    card: DatasetCard,
    *,
    context: ssl.SSLContext | None = None,
    cap: int = MAX_BYTES,
    timeout: float = TIMEOUT,
) -> Path:
    """Download a dataset's file from its official address, and return its path in the cache.

    Args:
        card: states name, address and checksum.
        context: trusted certificates; None = those of the system.
        cap: largest size of the file, in bytes.
        timeout: seconds without a byte after which the server counts as unreachable.

    Raises:
        DataError: no checksum is known, the address is not https, or the server cannot be reached.
        ChecksumError: the bytes do not have the checksum of the card; they are deleted.
    """
    if not card.md5 and not card.sha256:
        raise DataError(
            f"{card.name}: expected a card with a checksum, got none, and no file is downloaded "
            f"without one; {_way_out(card)}"
        )
    try:
        return _fetch_into(cache_dir(), card, context=context, cap=cap, timeout=timeout)
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise DataError(
            f"{card.name}: expected {card.file} in the folder of --data or from {card.url}, got: "
            f"{' '.join(reason.split())}; {_way_out(card)}"
        ) from None


def _fetch_into(
    folder: Path,
    card: DatasetCard,
    *,
    context: ssl.SSLContext | None,
    cap: int,
    timeout: float,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{card.file}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            digests = _fetch(card, sink, context=context, cap=cap, timeout=timeout)
        compare(digests, card, card.url)
        os.replace(part, folder / card.file)
    finally:
        Path(part).unlink(missing_ok=True)
    return folder / card.file


def _fetch(
    card: DatasetCard,
    sink: IO[bytes],
    *,
    context: ssl.SSLContext | None,
    cap: int,
    timeout: float,
) -> tuple[str, str]:
    """Write the file at the card's address to `sink`, and return its digests."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    _require_https(card.url)
    console = Console(stderr=True)
    columns = (TextColumn(card.file), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    digests, size = Digests(), 0
    with _opener(context).open(card.url, timeout=timeout) as answer, progress:
        stated = int(answer.headers.get("Content-Length") or 0)
        bar = progress.add_task("", total=stated or None)
        _require_small(card, stated, cap)
        while piece := answer.read(CHUNK):
            size += len(piece)
            _require_small(card, size, cap)
            digests.update(piece)
            sink.write(piece)
            progress.update(bar, completed=size)
    if size < stated:
        raise DataError(
            f"{card.name}: expected {stated} bytes from {card.url}, got {size}: "
            f"the connection was cut; try again, or {_way_out(card)}"
        )
    return digests.result()


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,  # noqa: ANN401 - an HTTPResponse, which typeshed calls IO[bytes]
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to follow.

        Raises:
            DataError: the redirect leaves https.
        """
        if urlsplit(newurl).scheme != "https":
            fp.close()  # urllib closes it only if it follows the redirect
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Return an opener for https alone: it refuses http, ftp, file and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=context or ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HttpsRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _require_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise DataError(
            f"expected an https address, got {url}: data is not downloaded without encryption"
        )


def _require_small(card: DatasetCard, size: int, cap: int) -> None:
    if size > cap:
        raise DataError(
            f"{card.name}: expected at most {cap} bytes from {card.url}, got {size} or more"
        )


def _way_out(card: DatasetCard) -> str:
    return f"download {card.file} by hand and pass its folder as --data DIR"
