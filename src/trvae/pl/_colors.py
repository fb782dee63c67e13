"""Colours that colour-blind readers can tell apart, and what tells them apart in grey.

From Okabe & Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trvae._utils._arguments import join_names

if TYPE_CHECKING:
    from collections.abc import Sequence

BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
SEQUENTIAL = "cividis_r"

# Neighbours differ in lightness. Yellow is too light for points on white.
_COLORS = (BLUE, ORANGE, VERMILLION, "#56B4E9", "#009E73", "#CC79A7", "#000000")
# As their number has no factor in common with that of the colours, pairs repeat late.
_MARKERS = ("o", "^", "s", "v", "D", "P", "X", "<")


class Style(NamedTuple):
    """How the points of a group look."""

    color: str
    marker: str


def styles(groups: Sequence, of: str) -> dict[object, Style]:
    """Give each group a colour and a marker that no other one has together.

    Parameters
    ----------
    groups
        Their names, in order.
    of
        What they are groups of, for the message.

    Raises
    ------
    ValueError
        If they are too many.
    """
    most = len(_COLORS) * len(_MARKERS)
    if len(groups) > most:
        raise ValueError(
            f"{of} has too many values to tell apart, at most {most}: {join_names(groups)}."
        )
    return {
        group: Style(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)])
        for i, group in enumerate(groups)
    }
