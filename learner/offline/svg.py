"""One small plot as inline SVG: named points with intervals, in order, and perhaps the ideal for each. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 280, 60, 36, 12
_TICKS = 5


class Point(NamedTuple):
    """A value with its interval, and what stands below it on the axis."""

    label: str
    value: float
    low: float
    high: float


def plot(points: Sequence[Point], ideal: Sequence[float] = ()) -> str:
    """The points joined by a line, their intervals as bars, `ideal` as a dashed line; empty without a finite point."""
    kept = [point for point in points if math.isfinite(point.value)]
    if not kept:
        return ""
    bounds = [*(p.low for p in kept), *(p.high for p in kept), *(p.value for p in kept), *ideal]
    low, high = min(filter(math.isfinite, bounds)), max(filter(math.isfinite, bounds))
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def x(place: int) -> float:
        return _LEFT + (place + 0.5) * (_WIDTH - _LEFT) / len(kept)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    def line(values: Sequence[float], kind: str) -> str:
        places = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in enumerate(values))
        return f'<polyline class="{kind}" fill="none" points="{places}"/>'

    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>']
    for tick in range(_TICKS):
        value = low + (high - low) * (tick + 0.5) / _TICKS
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    if ideal:
        parts.append(line(ideal, "ideal"))
    parts.append(line([point.value for point in kept], "mark"))
    for place, point in enumerate(kept):
        at = f"{x(place):.1f}"
        bar = f'<line class="mark" x1="{at}" x2="{at}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
        dot = f'<circle class="dot" cx="{at}" cy="{y(point.value):.1f}" r="4">'
        name = html.escape(point.label)
        parts += [bar, dot, f"<title>{name}: {point.value:.4f}</title></circle>"]
        parts.append(f'<text x="{at}" y="{_HEIGHT - 12}" text-anchor="middle">{name}</text>')
    return f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">{"".join(parts)}</svg>'
