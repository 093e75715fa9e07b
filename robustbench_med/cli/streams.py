"""Make stdout and stderr streams on which printing never fails.

A page, a table or a record is worth more than the line that announces it, so printing must not end
a command. Characters that the console's encoding lacks are replaced. Once stdout takes nothing more
(a full disk, a closed pipe), the command goes on in silence and says so at its end.
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
# characters that an encoding may lack -> what is printed instead
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
    """Return the replacement of characters that an encoding lacks, as `codecs` expects it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    words = "".join(_PLAIN.get(character, "?") for character in lacking)
    return words.encode(error.encoding, "replace").decode(error.encoding), error.end


codecs.register_error(REPLACE, _replace)


class _Lasting(io.RawIOBase):
    """A raw stream that never raises: after its first error it discards all that is written.

    Attributes:
        error: the first error of the file descriptor; None while it works.
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
    """Make stdout and stderr last until the command ends, and report output that was not printed.

    A command whose output could not be printed ends with exit code 2, unless it failed anyway or
    the reader closed the pipe. Streams that are no files, as in a test, stay as they are.
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
                f"{error.strerror}; the files of the command are written",
                file=sys.stderr,
            )
        sys.stderr.flush()
        for raw in (out, err):
            if raw is not None and raw.error is not None:
                _forget(raw.fileno())
        for replacement, before in ((sys.stdout, stdout), (sys.stderr, stderr)):
            if before is None:
                replacement.close()
        sys.stdout, sys.stderr = stdout, stderr
        if error is not None and error.errno not in _CLOSED and not failed:
            raise SystemExit(UNPRINTED)


def _lasting(stream: Any) -> tuple[_Lasting | None, Any]:  # noqa: ANN401 - of a test, anything
    """Return a lasting stream that replaces `stream`, with its raw stream."""
    if stream is None:  # closed before the command began
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
    """Point a broken descriptor at the null device, because Python flushes it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file)
    os.close(null)
