"""Colours by role, in light and dark. Figures are drawn in the light ones; a page turns them into variables.

Text has a contrast of at least 4.5 with what it stands on, shapes of at least 3, in both (WCAG 2.2, AA).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

__all__ = ["DARK", "HEAT", "LIGHT", "contrast", "heat", "heat_ink", "variables"]

HEAT = 10
"""Steps of the scale of heat maps."""

_RAMPS = {
    "light": ("#eef2fb", "#a9bdf2", "#4467d3", "#1b2a6b"),
    "dark": ("#1d2433", "#31488f", "#6d97f0", "#dfe9ff"),
}


def _mix(ramp: tuple[str, ...], at: float) -> str:
    place = at * (len(ramp) - 1)
    low = min(int(place), len(ramp) - 2)
    left, right = (_rgb(ramp[low]), _rgb(ramp[low + 1]))
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in zip(left, right, strict=True))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21, as WCAG defines it."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _theme(ramp: tuple[str, ...], **roles: str) -> dict[str, str]:
    steps = [_mix(ramp, n / (HEAT - 1)) for n in range(HEAT)]
    inks = [max(("#10131a", "#fdfdfe"), key=partial(contrast, step)) for step in steps]
    # A blue that nobody sees makes each step's ink a colour of its own, so that it can become a variable of its own.
    unique = [f"{ink[:5]}{int(ink[5:], 16) - n:02x}" for n, ink in enumerate(inks)]
    return (
        roles
        | {f"heat-{n}": step for n, step in enumerate(steps)}
        | {f"heat-ink-{n}": ink for n, ink in enumerate(unique)}
    )


LIGHT: Mapping[str, str] = _theme(
    _RAMPS["light"],
    paper="#ffffff",
    panel="#f5f6f9",
    ink="#161a21",
    muted="#596270",
    rule="#d6dbe3",
    base="#7b8696",
    vector="#a67c00",
    masks="#2f5bd0",
    private="#cf6a0a",
    exact="#8a4fd0",
    files="#1b8569",
    none="#8d96a4",
    one="#d06b0b",
    some="#305bd1",
)
DARK: Mapping[str, str] = _theme(
    _RAMPS["dark"],
    paper="#11141a",
    panel="#191e27",
    ink="#e8ecf2",
    muted="#a4aebc",
    rule="#343c49",
    base="#8e99a9",
    vector="#dfae3c",
    masks="#7ba3ff",
    private="#f19a4b",
    exact="#ba8df3",
    files="#4cc09e",
    none="#7d8796",
    one="#f29b4c",
    some="#7ca4ff",
)


def heat(share: float) -> str:
    """The role of a share between 0 and 1 on the scale."""
    return f"heat-{_step(share)}"


def heat_ink(share: float) -> str:
    """The role of text on it."""
    return f"heat-ink-{_step(share)}"


def _step(share: float) -> int:
    return min(max(round(share * (HEAT - 1)), 0), HEAT - 1)


def variables(theme: Mapping[str, str]) -> str:
    """The roles as CSS variables."""
    return "".join(f"--{role}:{colour};" for role, colour in theme.items())
