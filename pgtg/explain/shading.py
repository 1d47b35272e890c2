"""Rewards as shades, and characters that a person cannot see as marks that one can.

Rewards of different reward models are of different sizes, and for most aggregators only their
differences matter. So each run has a scale of its own: the middle is the median of the rewards
shown, blue is above it, orange below; the strongest shades begin at the outer 5 %.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgtg.ops.bounds import WIDTHS

LEVELS = 6  # shades on each side of the middle
NARROW = 0.1  # of the bound: a scale that spans less is said to
OUTER = 5  # percent of the rewards on each side that get the strongest shade

# Backgrounds of the 13 levels from orange over neutral to blue, on light and on dark paper. The two
# hues stay apart under the common colour blindnesses; the stronger, the further from the paper.
LIGHT = ["#a34e00", "#b4600a", "#dd8a36", "#eca75f", "#f6c48e", "#fbe0c0", "#f2f2f2"]
LIGHT += ["#d5e5f2", "#b0d0e8", "#84b7db", "#569acb", "#2b75ae", "#14609a"]
DARK = ["#f4943b", "#c07835", "#8e5b30", "#7c532e", "#5f432a", "#413427", "#26292d"]
DARK += ["#253846", "#2c4b63", "#325e7f", "#376d96", "#418bc1", "#4cadf4"]
STRONG = 5  # levels from here on, on either side, are written in the paper's colour
MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽"}


@dataclass(frozen=True)
class Scale:
    """How one run's rewards become shades.

    Args:
        low: Reward that gets the strongest orange.
        middle: Reward without a shade.
        high: Reward that gets the strongest blue.
    """

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, rewards: Sequence[float]) -> "Scale":
        """The scale for these rewards; as wide on both sides."""
        values = np.asarray(rewards, dtype=np.float64)
        middle = float(np.median(values))
        ends = np.percentile(values, [OUTER, 100 - OUTER])
        width = float(np.abs(ends - middle).max())
        return cls(middle - width, middle, middle + width)

    def note(self, bound: str) -> str:
        """What to know where the rewards differ by little of what the bound allows; else ""."""
        whole = WIDTHS.get(bound, 0.0)
        if self.high - self.low >= NARROW * whole:
            return ""
        share = 100 * (self.high - self.low) / whole
        return f"this scale spans {share:.1f} % of what the bound allows: small differences shaded"

    def level(self, reward: float) -> int:
        """-LEVELS .. LEVELS; 0 where all rewards are alike."""
        width = self.high - self.middle
        if width <= 0:
            return 0
        share = (reward - self.middle) / width
        return round(max(-1.0, min(1.0, share)) * LEVELS)

    def number(self, value: float) -> str:
        """A reward or an evaluation for people: as many decimals as tell the shades apart."""
        width = self.high - self.middle
        decimals = 3 if width <= 0 else min(max(2 - math.floor(math.log10(width)), 2), 8)
        return f"{value:.{decimals}f}".replace("-", "\u2212")


def visible(char: str) -> str | None:
    """How a character that cannot be seen, or that would reorder the line, is written.

    None for all that shows by itself, joiners inside emoji and scripts among them.
    """
    if char in MARKS:
        return MARKS[char]
    kind = unicodedata.category(char)
    if kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and char not in "\u200c\u200d"):
        return f"U+{ord(char):04X}"
    return None


def spelled(text: str) -> str:
    """A token on its own, all of it visible: "␣the", "↵", "◌́"."""
    out = "".join(mark if len(mark := visible(char) or char) == 1 else f"⟨{mark}⟩" for char in text)
    return f"◌{out}" if out and unicodedata.category(out[0]).startswith("M") else out
