"""One HTML page that holds the whole report: no network, no script, light and dark, printable.

Every text is escaped, figures are inline SVG, and a content security policy forbids the rest.
"""

import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from pgtg.report.forms import one_line
from pgtg.report.plots import GRID, INK, SERIES
from pgtg.report.tables import Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def as_page(
    heading: str,
    remarks: Sequence[str],
    made: Sequence[Table],
    figures: Mapping[str, tuple[str, str]],
) -> str:
    """The page.

    Args:
        heading: Title.
        remarks: What stands above the tables.
        made: Tables, in order.
        figures: name -> (caption, SVG document of our own making).
    """
    css = files("pgtg.report").joinpath("page.css").read_text(encoding="utf-8")
    links = [(f"t-{_id(table.name)}", table.title) for table in made]
    links[1:1] = [("figures", "figures")] if figures else []
    items = "".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title in links)
    said = "".join(f"<li>{text(remark)}</li>" for remark in remarks)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{text(heading)}</title>",
        f"<style>\n{css}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{text(heading)}</h1>",
        f"<ul>{said}</ul>" if said else "",
        '<nav aria-label="Contents"><details><summary>contents</summary>',
        f"<ul>{items}</ul></details></nav>",
        *(_table(table) for table in made[:1]),
        _figures(figures),
        *(_table(table) for table in made[1:]),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def text(value: str) -> str:
    """Any text as text."""
    return html.escape(one_line(value), quote=True)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in table.columns)
    rows = []
    for number, row in enumerate(table.rows):
        kind = ' class="published"' if number in table.marked else ""
        cells = "".join(f"<td>{text(value)}</td>" for value in row[1:])
        rows.append(f'<tr{kind}><th scope="row" dir="auto">{text(row[0])}</th>{cells}</tr>')
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    anchor, body = f"t-{_id(table.name)}", "\n".join(rows)
    return (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{text(table.title)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{anchor}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
        f"{note}\n</section>"
    )


def _figures(figures: Mapping[str, tuple[str, str]]) -> str:
    if not figures:
        return ""
    drawn = "\n".join(
        f"<figure>{inline(svg, _id(name), caption)}"
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for name, (caption, svg) in figures.items()
    )
    return (
        f'<section>\n<h2 id="figures">figures</h2>\n<div class="figures">\n{drawn}\n</div>\n'
        "</section>"
    )


def inline(svg: str, name: str, caption: str) -> str:
    """An SVG document as part of the page: own ids, the page's colours, a name for readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = body.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for number, color in enumerate(SERIES):
        body = body.replace(color, f"var(--s{number})")
    return body.replace("<svg", f'<svg role="img" aria-label="{text(caption)}"', 1).strip()


def _id(name: str) -> str:
    """A name as an anchor: letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)
