"""What the commands print on: no character that cannot be printed, and no pipe, ends a command.

A page, a table or a record is worth more than the line that announces it. So printing never raises:
characters that the console's encoding lacks are replaced, and once stdout takes nothing more (a
full disk, a closed pipe) the command goes on in silence and says so at its end.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

REPLACE = "robustbench_med.replace"
# what an encoding may lack -> what a person reads in its place
_PLAIN = {
    "ε": "eps",
    "∈": "in",
    "∞": "inf",
    "∅": "none",
    "·": "|",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "…": "...",
    "†": "+",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "\N{NO-BREAK SPACE}": " ",
}
_CLOSED = (errno.EPIPE, errno.ESHUTDOWN)
UNPRINTED = 2


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Return what is printed for the characters that an encoding lacks, as `codecs` asks for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    words = "".join(_PLAIN.get(character, "?") for character in lacking)
    return words.encode(error.encoding, "replace").decode(error.encoding), error.end


codecs.register_error(REPLACE, _replace)


class _Lasting(io.RawIOBase):
    """A raw stream that never raises: after its first error it takes everything and keeps nothing.

    Attributes:
        error: the first error of the stream beneath; None while it works.
    """

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return os.isatty(self._file)

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += os.write(self._file, view[done:])
            except InterruptedError:
                continue
            except OSError as error:
                self.error = error
        return len(view)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Make stdout and stderr last until the command ends, and say at its end what was not printed.

    A command whose output could not be printed, but for a reader who closed the pipe, ends with
    exit code 2, unless it failed anyway. Streams that are no files (of a test) stay as they are.
    """
    stdout, stderr = sys.stdout, sys.stderr
    out, sys.stdout = _lasting(stdout)
    err, sys.stderr = _lasting(stderr)
    failed = False
    try:
        yield
    except SystemExit as stop:
        failed = stop.code not in (None, 0)
        raise
    except BaseException:
        failed = True
        raise
    finally:
        sys.stdout.flush()
        error = out.error if out is not None else None
        if error is not None and error.errno not in _CLOSED:
            print(
                "robustbench_med: expected to print to stdout, got: "
                f"{error.strerror}; what was to be written to files is written",
                file=sys.stderr,
            )
        sys.stderr.flush()
        for raw in (out, err):
            if raw is not None and raw.error is not None:
                _forget(raw.fileno())
        for own, before in ((sys.stdout, stdout), (sys.stderr, stderr)):
            if before is None:
                own.close()
        sys.stdout, sys.stderr = stdout, stderr
        if error is not None and error.errno not in _CLOSED and not failed:
            raise SystemExit(UNPRINTED)


def _lasting(stream: Any) -> tuple[_Lasting | None, Any]:  # noqa: ANN401 - of a test, anything
    """Return a stream that lasts in the place of `stream`, with what is beneath it."""
    if stream is None:  # closed before the command began: nobody reads
        return None, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as we
    try:
        stream.flush()
        raw = _Lasting(stream.fileno())
    except (OSError, ValueError):  # a stream of a test
        return None, stream
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding or "utf-8",
        errors=REPLACE,
        line_buffering=raw.isatty() or stream is sys.__stderr__,
    )
    return raw, text


def _forget(file: int) -> None:
    """Point a descriptor that takes nothing more to nowhere: Python flushes it again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file)
    os.close(nowhere)
