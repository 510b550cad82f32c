"""The shell that all HTML pages of this project share: one file each, light and dark, nothing loaded from elsewhere."""

import string
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from cmbert.files import write_text


def write_page(output: Path, *, title: str, subtitle: str, figures: str, sections: Sequence[str]) -> int:
    """Write a page of headline `figures` (HTML cards, may be empty) and `sections` (HTML); return its bytes."""
    template = resources.files("cmbert").joinpath("page.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=escape(title), subtitle=subtitle, figures=figures, sections="\n".join(filter(None, sections))
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return len(page.encode())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts, the first of each row naming it."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
