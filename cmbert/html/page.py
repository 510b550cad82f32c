"""The shell that all HTML pages of this project share: one file each, light and dark, nothing loaded from elsewhere."""

import string
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Literal

from cmbert.errors import ConfigError
from cmbert.files.operations import read_bytes
from cmbert.files.whole import in_utf8, write_text

DOCTYPE = b"<!DOCTYPE html>"
Look = Literal["", "facts", "numbers", "texts"]


def write_page(output: Path, *, title: str, subtitle: str, sections: Sequence[str], figures: str = "") -> int:
    """Write a page of headline `figures` (HTML cards) and `sections` (HTML) under a `title` (text); return its bytes.

    subtitle: text, or HTML if it is to hold marks; escape what comes from users. Raises ConfigError rather than write
    over a file that is no page: the recipe, perhaps.
    """
    start = read_bytes(output)[: len(DOCTYPE)] if output.is_file() else b""
    if start and start != DOCTYPE:
        raise ConfigError(f"{output}: holds something else than a page; name another file")
    template = resources.files("cmbert.html").joinpath("page.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=escape(title),
        subtitle=subtitle,
        figures=f'<div class="figures">\n{figures}\n</div>' if figures else "",
        sections="\n".join(filter(None, sections)),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return len(in_utf8(page))


def section(heading: str, body: str) -> str:
    """Return a heading (text) and, in a frame, what is under it (HTML)."""
    return f'<h2>{escape(heading)}</h2>\n<div class="card">{body}</div>'


def cards(texts: Sequence[Sequence[str]]) -> str:
    """Return headline figures: of each its name, value, unit and a note."""
    card = '<div class="card">{}<span class="value">{}<small>{}</small></span><span class="faint">{}</span></div>'
    return "\n".join(card.format(*map(escape, four)) for four in texts)


def figure(title: str, note: str, drawing: str, keys: Sequence[str] = ()) -> str:
    """Return a framed `drawing` (SVG) under its title and note (texts), and the `keys` (HTML) of its colours."""
    caption = f"{escape(title, quote=False)}<span>{escape(note, quote=False)}</span>"
    caption += f'<span class="keys">{"".join(keys)}</span>' if keys else ""
    return f'<figure class="card"><figcaption>{caption}</figcaption>{drawing}</figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], look: Look = "") -> str:
    """Return a table of plain texts, the first of each row naming it; without a `head` if that is empty.

    look: "facts" gives the names a third of the width, "numbers" aligns all but the names to the right,
    "texts" keeps room for them; what is wider than the page then scrolls.
    """
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{look}">{top}<tbody>{body}</tbody></table></div>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Return a bar for each (name, size, what is said of it), the largest as long as there is room."""
    longest = max((size for _, size, _ in rows), default=0) or 1
    bar = '<span>{}</span><i style="width:{:.1f}%"></i><b>{}</b>'
    return f'<div class="bars">{"".join(bar.format(escape(n), 100 * s / longest, escape(t)) for n, s, t in rows)}</div>'


def quotes(texts: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Return Chinese texts as quotations, under each its note if there are notes."""
    below = [f'\n<span class="faint" lang="en">{escape(note)}</span>' for note in notes] or [""] * len(texts)
    quote = '<blockquote lang="zh-CN">{}{}</blockquote>'
    return "".join(quote.format(escape(text), note) for text, note in zip(texts, below, strict=True))


def chips(texts: Sequence[str]) -> str:
    """Return Chinese words side by side."""
    return f'<div lang="zh-CN">{"".join(f"""<span class="chip">{escape(text)}</span>""" for text in texts)}</div>'
