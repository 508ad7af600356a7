"""One small plot as inline SVG: lines of points with intervals, axes with titles, and a legend. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 34, 56
_TICKS = 5
_CHARACTER = 7
_Scale: TypeAlias = Callable[[float], float]


class Point(NamedTuple):
    """A value with its interval at a place on the horizontal axis; `label` is told when it is pointed at.

    One without an interval (NaN) is a corner of its line and has no dot.
    """

    x: float
    label: str
    value: float
    low: float
    high: float


class Line(NamedTuple):
    """Points joined by a line; `kind` is its class in the style sheet: ``mark``, ``other`` or ``ideal``."""

    name: str
    kind: str
    points: Sequence[Point]


def plot(lines: Sequence[Line], x_title: str, y_title: str, names: Sequence[str] = ()) -> str:
    """The lines over one another; empty without a finite point.

    Parameters
    ----------
    names
        What stands at 0, 1, … on the horizontal axis, if these are not numbers.
    """
    kept = [line._replace(points=[p for p in line.points if math.isfinite(p.value)]) for line in lines]
    points = [point for line in kept for point in line.points]
    if not points:
        return ""
    ends = [end for p in points for end in (p.value, p.low, p.high) if math.isfinite(end)]
    low, high = _widened(min(ends), max(ends))
    left, right = (-0.5, len(names) - 0.5) if names else _widened(min(p.x for p in points), max(p.x for p in points))

    def x(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    bottom, end = y(low), x(right)
    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{end:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    for place, name in enumerate(names) if names else ((tick, f"{tick:g}") for tick in _ticks(left, right)):
        parts.append(f'<line class="axis" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(_text(x(place), bottom + 20, name))
    parts.append(f'<polyline class="axis" fill="none" points="{_LEFT},{_TOP} {_LEFT},{bottom} {end:.1f},{bottom}"/>')
    parts.append(_text((_LEFT + end) / 2, _HEIGHT - 8, x_title))
    middle = (_TOP + bottom) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle:.1f})">{_text(16, middle, y_title)}</g>')
    legend = float(_LEFT)
    # The first line is drawn last, on top of the others.
    for line in reversed(kept):
        places = " ".join(f"{x(p.x):.1f},{y(p.value):.1f}" for p in line.points)
        parts.append(f'<polyline class="{line.kind}" fill="none" points="{places}"/>')
        parts += [_drawn(p, line, x(p.x), y) for p in line.points if math.isfinite(p.low)]
    for line in kept:
        parts.append(f'<line class="{line.kind}" x1="{legend:.0f}" x2="{legend + 24:.0f}" y1="14" y2="14"/>')
        parts.append(_text(legend + 30, 18, line.name, "start"))
        legend += 54 + _CHARACTER * len(line.name)
    title = html.escape(f"{y_title} against {x_title}")
    return (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">{"".join(parts)}</svg>'
    )


def _drawn(point: Point, line: Line, x: float, y: _Scale) -> str:
    told = f"{line.name}, {point.label}: {point.value:.4f}, {point.low:.4f} to {point.high:.4f}"
    bar = f'<line class="{line.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
    dot = f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y(point.value):.1f}" r="4">'
    return f"{bar}{dot}<title>{html.escape(told)}</title></circle>"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or 0.01
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About `_TICKS` round numbers between two."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
