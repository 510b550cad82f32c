"""One self-contained HTML page: headings, tables, bars, quotations; light and dark, no scripts, no network."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; }
body { font: 15px/1.55 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  max-width: 68rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin-bottom: .25rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .75rem; align-items: center }
.bars i { display: block; height: .9rem; background: var(--bar); border-radius: 2px; min-width: 1px }
.bars span:last-child, .number { font-variant-numeric: tabular-nums; text-align: right }
blockquote { margin: .4rem 0; padding: .35rem .8rem; border-left: 3px solid var(--bar); white-space: pre-wrap;
  overflow-wrap: anywhere }
"""


class Section(NamedTuple):
    """A heading and the HTML under it."""

    heading: str
    body: str


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Return a whole page; `title`, `summary` and headings are text, bodies are HTML."""
    parts = "".join(f"<h2>{html.escape(heading)}</h2>\n{body}\n" for heading, body in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(summary)}</p>\n{parts}</html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; whole numbers get thousands separators."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join("<tr>" + "".join(f"<td>{_shown(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def bars(counts: Mapping[str, int], total: int) -> str:
    """Return a bar for each count, with its share of `total`."""
    largest = max(counts.values(), default=0) or 1
    rows = "".join(
        f'<span>{html.escape(name)}</span><i style="width:{100 * count / largest:.2f}%"></i>'
        f'<span class="number">{count:,} ({100 * count / max(total, 1):.1f} %)</span>\n'
        for name, count in counts.items()
    )
    return f'<div class="bars">{rows}</div>'


def quotes(texts: Sequence[str]) -> str:
    """Return texts as quotations."""
    return "".join(f'<blockquote lang="zh">{html.escape(text)}</blockquote>\n' for text in texts)


def _shown(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, int) else html.escape(str(cell))
