"""One HTML page that needs nothing but itself: text, tables that sort, figures inside. No network, no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan

_STYLE = """
:root { --ink:#1f2933; --quiet:#616e7c; --line:#e4e7eb; --accent:#0f766e; --bad:#c2410c; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 80rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; } .quiet { color: var(--quiet); font-size: .88rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem; min-width: 8rem; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.card.bad b { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid var(--ink); cursor: pointer; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
table.matrix { font-size: .8rem; } table.matrix th, table.matrix td { padding: .25rem .2rem; }
table.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; font-weight: 500; }
table.matrix thead th:first-child span { writing-mode: horizontal-tb; transform: none; display: inline-block; }
img { max-width: 100%; height: auto; display: block; } figure { margin: 1rem 0 1.6rem; }
figcaption { color: var(--quiet); font-size: .88rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
code { font-size: .85em; overflow-wrap: anywhere; }
@media print {
  @page { size: A4; margin: 12mm; }
  body { padding: 0; max-width: none; font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } table.matrix { font-size: 6.5pt; }
  th, td { padding: .15rem .3rem; } table.matrix th, table.matrix td { padding: .1rem; }
  h2, h3 { break-after: avoid; } tr, figure, .card { break-inside: avoid; } figure img { max-height: 240mm; }
}
"""
# Clicking a column's head sorts by it; what cannot be read as a number sorts as text, and "-" always goes last.
_SCRIPT = """
document.querySelectorAll("thead th").forEach(th => th.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], at = th.cellIndex, up = th.dataset.up !== "1";
  th.dataset.up = up ? "1" : "0";
  const value = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
  const missing = v => v === "-" || v === "";
  [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const d = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? d : -d;
  }).forEach(row => body.append(row));
}));
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what is shown, what it sorts by, and how good it is (0 worst, 1 best) for its colour."""

    text: str
    value: float | None = None
    goodness: float | None = None
    title: str = ""  # shown when the mouse rests on it
    is_text: bool = False  # prose: to the left, may wrap


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{chr(10).join(parts)}\n<script>{_SCRIPT}</script></body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, quiet: bool = False) -> str:
    return f"<p{' class=quiet' if quiet else ''}>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text whose spaces and line ends matter."""
    return f"<pre>{escape(text)}</pre>"


def items(texts: Iterable[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def cards(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Large figures: (what, how much, whether it is bad news)."""
    boxes = (
        f'<div class="card{" bad" * bad}"><b>{escape(value)}</b>{escape(name)}</div>' for name, value, bad in entries
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def figure(png: bytes, caption: str) -> str:
    """A picture with its caption; the bytes lie inside the page."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def folded(summary: str, parts: Iterable[str]) -> str:
    """Something to open with a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[Cell | str | int]], matrix: bool = False) -> str:
    """A table that sorts by a click on a column's head. `matrix` turns the heads upright: many narrow columns."""
    rows = list(rows)
    prose = [isinstance(cell, Cell) and cell.is_text for cell in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f"<th{' class=text' * is_text}><span>{escape(name)}</span></th>"
        for name, is_text in zip(header, prose, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    kind = ' class="matrix"' if matrix else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(cell: Cell | str | int) -> str:
    if not isinstance(cell, Cell):
        return f"<td>{escape(str(cell))}</td>"
    more = ' class="text"' if cell.is_text else ""
    if cell.value is not None and not isnan(cell.value):
        more += f' data-v="{cell.value:.6g}"'
    if cell.goodness is not None and not isnan(cell.goodness):
        more += f' style="background:{heat(cell.goodness)}"'
    if cell.title:
        more += f' title="{escape(cell.title)}"'
    return f"<td{more}>{escape(cell.text)}</td>"


def heat(goodness: float) -> str:
    """A light colour from orange (0) over yellow to green (1), dark text stays readable on it."""
    g = min(1.0, max(0.0, goodness))
    return f"hsl({15 + 145 * g:.0f} 70% {88 + 4 * g:.0f}%)"
