"""The text that a reader of a page sees, line by line, for comparison with a golden file."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# elements that end a line of text
_BLOCKS = {
    *("p", "li", "h1", "h2", "h3", "dt", "dd", "tr", "caption", "figcaption", "legend", "option"),
    *("summary", "section", "div", "table", "label", "button", "ul", "ol", "title", "pre"),
}
_NUMBERS = r"\b[0-9a-f]{10,}\b|[-+−±]?\d[\d.,]*(?:[–-]\d[\d.,]*)?"  # noqa: RUF001 - as written
_CELLS = {"td", "th"}
_HIDDEN = {"style", "svg", "noscript"}


class _Reader(HTMLParser):
    """Collects lines; what a row of a board keeps as text until it is opened counts as visible."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.words = ""
        self.hidden = 0
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self.hidden += 1
        if tag == "script":
            self.script = dict(attrs).get("type") or "script"
        if tag in _BLOCKS:
            self.end_line()
        if tag in _CELLS and self.words.strip():
            self.words += " | "

    def handle_endtag(self, tag: str) -> None:
        if tag in _HIDDEN:
            self.hidden -= 1
        if tag == "script":
            self.script = ""
        if tag in _BLOCKS:
            self.end_line()

    def handle_data(self, data: str) -> None:
        if self.script == "text/html":  # the details of a row
            self.lines += visible_text(data)
        elif not self.hidden and not self.script:
            self.words += data

    def end_line(self) -> None:
        """Close the line of words read so far."""
        line = re.sub(r"\s+", " ", self.words).strip()
        self.words = ""
        if line:
            self.lines.append(line)


def visible_text(html: str) -> list[str]:
    """Return the lines of text of a page; the cells of a table's row are one line."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.end_line()
    return reader.lines


def sentences(html: str) -> list[str]:
    """Return the lines of a page that hold words, each once, in the order of their first use.

    Numbers are kept in the head of the page, up to its filters; below they are written "#", for
    they repeat what the head and other tests hold.
    """
    head, _, boards = html.partition('<div class="filters"')
    below = (re.sub(_NUMBERS, "#", line) for line in visible_text(boards))
    lines = [*visible_text(head), *below]
    return list(dict.fromkeys(line for line in lines if re.search(r"[A-Za-z]{3}", line)))
