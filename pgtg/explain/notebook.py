"""Token rewards as a small piece of HTML: what a notebook shows of them.

All styles stand in the elements themselves, so that nothing of the notebook's page changes; every
text is escaped, and there is no script.
"""

import html
from collections.abc import Sequence

import numpy as np

from pgtg.explain.page import text
from pgtg.explain.shading import LEVELS, LIGHT, STRONG, Scale, spelled

Row = tuple[Sequence[str], Sequence[int], np.ndarray, bool]  # tokens, ids, rewards, whether cut


def as_html(rows: Sequence[Row]) -> str:
    """Texts with each token shaded by its reward, on one scale for all of them.

    Hovering a token shows its number; a token without text is written as its id.
    """
    values = [float(reward) for _, _, rewards, _ in rows for reward in rewards]
    if not values:
        return "<p>no text</p>"
    scale = Scale.of(values)
    low, middle, high = map(scale.number, (scale.low, scale.middle, scale.high))
    swatches = "".join(f'<span style="background:{colour}">&emsp;</span>' for colour in LIGHT)
    legend = f'<p style="font-size:85%">reward {low} {swatches} {high}, median {middle}</p>'
    return f"<div>{legend}{''.join(_row(row, scale) for row in rows)}</div>"


def _row(row: Row, scale: Scale) -> str:
    tokens, ids, rewards, cut = row
    parts = [_token(*one, scale) for one in zip(tokens, ids, rewards, strict=True)]
    end = ' <span style="opacity:.6">[cut to fit]</span>' if cut else ""
    return f'<p dir="auto" style="line-height:1.9;white-space:pre-wrap">{"".join(parts)}{end}</p>'


def _token(token: str, number: int, reward: float, scale: Scale) -> str:
    level = scale.level(float(reward))
    ink = "#fff" if abs(level) >= STRONG else "#000"
    shown = text(token) if token.strip(" ") else html.escape(spelled(token) or f"⟨{number}⟩")
    style = f"background:{LIGHT[level + LEVELS]};color:{ink};border-radius:2px"
    return f'<span title="{scale.number(float(reward))}" style="{style}">{shown}</span>'
