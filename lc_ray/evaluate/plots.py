"""The report's plots, as inline SVG that takes its colours from the page, so that it follows the light and the dark theme.

Each function takes parts of a run's record; where they hold nothing to draw it returns None.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

Record = dict[str, Any]

_WIDTH = 920  # pixels where the page is wide enough
_COLOURS = 8  # c0 … c7 in report.html
_MANY, _LIKELIEST = 20, 5  # labels: more than so many are not all shown, but so many of them
_RAW_POINTS = 250  # per curve; more can't be told apart and make the page heavy
_MOST_BARS = 16  # segments that get a bar each; with more of them, members do
_PARTS = {"start": "c2", "data": "c3", "compute": "c0", "communication": "c1", "checkpoint": "c6", "evaluate": "c4", "other": "grey"}
_PERCENT = {"accuracy", "f1", "precision", "recall", "auc"}  # words in the names of metrics that people read as percentages


@dataclass(frozen=True)
class Plot:
    """A drawing and its legend.

    Attributes:
        svg: the drawing.
        keys: CSS class and meaning of each colour.
    """

    svg: Markup
    keys: list[tuple[str, str]]


# Figures as people read them


def metric(name: str, value: float, digits: int = 1) -> str:
    """0.741 → "74.1%" for an accuracy and its like, three decimals for all others."""
    return f"{100 * value:.{digits}f}%" if _percent(name) else f"{value:.3f}"


def change(name: str, difference: float, digits: int = 1) -> str:
    """-0.012 → "−1.2 points" for an accuracy and its like, three decimals for all others."""
    scale, digits, unit = (100, digits, " points") if _percent(name) else (1, 3, "")
    return f"{round(scale * difference, digits) + 0.0:+.{digits}f}{unit}".replace("-", "−")


def likeliest(known: dict[str, float]) -> dict[str, float]:
    """Probabilities by label; of many labels those of the likeliest."""
    return known if len(known) <= _MANY else {name: known[name] for name in heapq.nlargest(_LIKELIEST, known, key=known.__getitem__)}


def size(count: float) -> str:
    """Bytes, with a decimal unit."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def number(count: float) -> str:
    """A large count, with a decimal unit."""
    return _scaled(count, ("", "k", "M", "G", "T"))


def duration(seconds: float) -> str:
    """Seconds, as hours and minutes where they are many."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def gene(value: Any) -> str:
    """A gene's value in few characters."""
    return re.sub(r"e([+-])0", r"e\1", f"{value:.2g}") if isinstance(value, float) else str(value)


def _percent(name: str) -> bool:
    return not _PERCENT.isdisjoint(name.split("_"))


def _scaled(count: float, units: tuple[str, ...]) -> str:
    step = min(len(units) - 1, int(math.log(count, 1000) + 1e-9)) if count >= 1 else 0
    return f"{count / 1000**step:.{1 if step else 0}f} {units[step]}".rstrip()


# SVG


def _tag(name: str, *inside: str, **attributes: str | float) -> Markup:
    """An element. Text inside and attributes are escaped, `class_` is `class`."""
    pairs = ((key.rstrip("_").replace("_", "-"), round(v, 1) if isinstance(v, float) else v) for key, v in attributes.items())
    listed = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(name, listed, Markup("").join(inside))


def _text(text: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Markup:
    return _tag("text", text, x=x, y=y, class_=class_, text_anchor=anchor)


def _line(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    return _tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def _svg(parts: list[Markup], height: float, label: str, width: float = _WIDTH) -> Markup:
    style = f"min-width:{width if width > _WIDTH else 700:.0f}px"
    return _tag("svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, style=style)


@dataclass(frozen=True)
class _Scale:
    """Values from low to high, drawn from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About as many round values."""
        rough = (self.high - self.low) / count or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _padded(values: Iterable[float], pad: float = 0.1) -> tuple[float, float]:
    """Range of the finite values, a little wider."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    room = pad * (max(finite) - min(finite)) or 0.05 * abs(max(finite)) or 1.0
    return min(finite) - room, max(finite) + room


def _levels(y: _Scale, left: float, right: float, write: Callable[[float], str], count: int = 5) -> list[Markup]:
    """Grid lines of a vertical scale with their values."""
    drawn = []
    for value in y.ticks(count):
        drawn += [_line([(left, y(value)), (right, y(value))], "grid"), _text(write(value), left - 8, y(value) + 4, "soft", "end")]
    return drawn


def _colour(member: int) -> str:
    return f"c{member % _COLOURS}"


# The plots


def winning_path(segments: list[Record], winner: str | None) -> set[str]:
    """Keys of the winner and its ancestors."""
    parents, path, key = {s["key"]: s.get("parent") for s in segments}, set[str](), winner
    while key is not None and key in parents and key not in path:
        path.add(key)
        key = parents[key]
    return path


def curves(segments: list[Record], objective: str, winner: str | None) -> Plot | None:
    """Training loss by step, above the validation objective at the ends of segments."""
    drawn = [(s, h) for s in segments if (h := [p for p in s.get("history") or [] if math.isfinite(p["loss"])])]
    if not drawn:
        return None
    losses = sorted(p["loss"] for _, h in drawn for p in h)
    x = _Scale(min(h[0]["step"] for _, h in drawn), max(h[-1]["step"] for _, h in drawn), 62, _WIDTH - 16)
    # the highest hundredth, usually the first steps and spikes, would flatten all the rest
    loss = _Scale(*_padded([losses[0], losses[int(0.99 * (len(losses) - 1))]], 0.05), 262, 24)
    ends = {s["key"]: (x(h[-1]["step"]), s["metrics"][objective]) for s, h in drawn if math.isfinite(s.get("metrics", {}).get(objective, math.nan))}
    bottom = 480 if ends else 262
    parts = [_text("training loss", 62, 14, "strong"), *_levels(loss, x.start, x.end, "{:g}".format), *_boundaries(drawn, x, 24, bottom)]
    path = winning_path(segments, winner)
    for s, h in drawn:
        bold = " bold" if s["key"] in path else ""
        raw = h[:: math.ceil(len(h) / _RAW_POINTS)]
        parts.append(_line([(x(p["step"]), loss(p["loss"])) for p in raw], f"line raw {_colour(s['member'])}"))
        parts.append(_line([(x(step), loss(value)) for step, value in _smooth(h)], f"line {_colour(s['member'])}{bold}"))
    if ends:
        parts += _objectives([s for s, _ in drawn if s["key"] in ends], ends, objective, winner, path, x)
    parts += [_text(f"{step:,.0f}", x(step), bottom + 18, "soft", "middle") for step in x.ticks(8)]
    parts.append(_text("training step", x.end, bottom + 36, "soft", "end"))
    members = sorted({s["member"] for s, _ in drawn})
    return Plot(_svg(parts, bottom + 42, "learning curves"), [(_colour(m), f"member {m}") for m in members])


def _smooth(history: list[Record]) -> list[tuple[int, float]]:
    """Exponential moving average over about a tenth of the points, thinned."""
    weight, value, points = 2 / (1 + max(1.0, len(history) / 10)), history[0]["loss"], []
    for p in history:
        value += weight * (p["loss"] - value)
        points.append((p["step"], value))
    return [*points[:: math.ceil(len(points) / _RAW_POINTS)], points[-1]]


def _boundaries(drawn: list[tuple[Record, list[Record]]], x: _Scale, top: float, bottom: float) -> list[Markup]:
    """Where segments start, with how much is pruned there."""
    parts, before = [], 0.0
    for number in sorted({s["segment"] for s, _ in drawn}):
        at = x(min(h[0]["step"] for s, h in drawn if s["segment"] == number))
        pruned = [s.get("pruned") or 0.0 for s, _ in drawn if s["segment"] == number]
        more = max(pruned) > before + 1e-3
        if more:
            spread = f"{min(pruned):.0%}" if max(pruned) - min(pruned) < 0.005 else f"{min(pruned):.0%}–{max(pruned):.0%}"
            parts.append(_text(f"{spread} pruned", at + 6, top + 10, "cut"))
            before = max(pruned)
        if more or number:
            parts.append(_line([(at, top), (at, bottom)], "cutline" if more else "boundary"))
    return parts


def _objectives(
    segments: list[Record], ends: dict[str, tuple[float, float]], objective: str, winner: str | None, path: set[str], x: _Scale
) -> list[Markup]:
    """The validation objective at the ends of segments, each joined with the segment it went on from."""
    y = _Scale(*_padded((value for _, value in ends.values()), 0.15), 480, 312)
    title = _text(f"validation {objective.replace('_', ' ')}", 62, 296, "strong")
    parts = [title, *_levels(y, x.start, x.end, lambda value: metric(objective, value), 4)]
    for s in sorted(segments, key=lambda s: s["key"] in path):  # the winner last, on top
        at, value = ends[s["key"]]
        bold = " bold" if s["key"] in path else ""
        if (parent := s.get("parent")) in ends:
            dashed = " dashed" if s.get("inherited") else ""
            parts.append(_line([(ends[parent][0], y(ends[parent][1])), (at, y(value))], f"line {_colour(s['member'])}{bold}{dashed}"))
        hint = _tag("title", f"member {s['member']}, segment {s['segment'] + 1}: {metric(objective, value)}")
        parts.append(_tag("circle", hint, cx=at, cy=y(value), r=4.5, class_=f"dot {_colour(s['member'])}"))
        if s["key"] == winner:
            parts.append(_tag("circle", cx=at, cy=y(value), r=8.5, class_="ring"))
            parts.append(_text(f"winner {metric(objective, value)}", at - 14, y(value) - 9, "strong halo", "end"))
    return parts


def lineage(segments: list[Record], objective: str, winner: str | None) -> Plot | None:
    """The population: members as rows, segments as columns, and who went on from whom."""
    if len(segments) < 2:
        return None
    members, numbers = sorted({s["member"] for s in segments}), sorted({s["segment"] for s in segments})
    lines = max(len(s.get("genes") or {}) for s in segments) + any(s.get("pruned") for s in segments)
    left, tall = 84.0, 26.0 + 15 * lines
    pitch = max(118.0, (_WIDTH - left) / len(numbers))
    wide = min(pitch - 34, 150.0)
    corner = {s["key"]: (left + pitch * numbers.index(s["segment"]), 34 + (tall + 24) * members.index(s["member"])) for s in segments}
    parts = [_text(f"segment {n + 1}", left + pitch * i + wide / 2, 14, "soft", "middle") for i, n in enumerate(numbers)]
    parts += [_text(f"member {m}", 0, 34 + (tall + 24) * i + tall / 2 + 4, "strong") for i, m in enumerate(members)]
    path = winning_path(segments, winner)
    # the winning path last, so that no other arrow crosses over it
    for s in sorted((s for s in segments if s.get("parent") in corner), key=lambda s: s["key"] in path):
        (x, y), (px, py) = corner[s["key"]], corner[s["parent"]]
        kind = ("exploit" if s.get("inherited") else "arrow") + (" bold" if s["key"] in path else "")
        start, end, middle = px + wide, x - 6, (px + wide + x) / 2
        y, py = y + tall / 2, py + tall / 2
        curve = f"M{start:.1f} {py:.1f} C{middle:.1f} {py:.1f} {middle:.1f} {y:.1f} {end:.1f} {y:.1f}"
        parts += [
            _tag("path", d=curve, class_=kind),
            _tag("polygon", points=f"{x - 1:.1f},{y:.1f} {x - 9:.1f},{y - 4.5:.1f} {x - 9:.1f},{y + 4.5:.1f}", class_=kind),
        ]
    values = [s.get("metrics", {}).get(objective, math.nan) for s in segments]
    ranks = sorted(v for v in values if math.isfinite(v))  # by rank: one bad member would leave all the others alike
    for s, value in zip(segments, values, strict=True):
        shade = 0.05 + 0.45 * ranks.index(value) / len(ranks) if math.isfinite(value) else 0.0
        parts += _node(s, corner[s["key"]], (wide, tall), metric(objective, value), shade, s["key"] in path)
        if s["key"] == winner:
            parts.append(_text("winner", corner[winner][0] + wide / 2, corner[winner][1] - 7, "win", "middle"))
    height = 34 + (tall + 24) * len(members)
    keys = [("arrow", "went on"), ("bold", "winning path")]
    keys += [("exploit", "exploit: weights of another member")] if any(s.get("inherited") for s in segments) else []
    return Plot(_svg(parts, height, "lineage of the population", max(_WIDTH, left + pitch * len(numbers))), keys)


def _node(s: Record, corner: tuple[float, float], extent: tuple[float, float], value: str, shade: float, bold: bool) -> list[Markup]:
    (x, y), (wide, tall), genes = corner, extent, s.get("genes") or {}
    hint = _tag("title", f"member {s['member']}, segment {s['segment'] + 1}: {value}", *(f"\n{k} = {v}" for k, v in genes.items()))
    below = [gene(v) for v in genes.values()] + ([f"{s['pruned']:.0%} pruned"] if s.get("pruned") else [])
    return [
        _tag("rect", x=x, y=y, width=wide, height=tall, rx=6, class_="paper"),
        _tag("rect", hint, x=x, y=y, width=wide, height=tall, rx=6, class_="node bold" if bold else "node", style=f"fill-opacity:{shade:.2f}"),
        _text(value, x + wide / 2, y + 18, "strong", "middle"),
        *(_text(line, x + wide / 2, y + 34 + 15 * i, "", "middle") for i, line in enumerate(below)),
    ]


def tradeoff(models: list[Record], labels: list[str], objective: str, accept: Record | None) -> Plot | None:
    """Objective against throughput, each model a bubble with an area like its bytes, and the region that the gate lets pass."""
    if len(models) < 2 or any(objective not in m["metrics"] for m in models):
        return None
    quality, speed = [m["metrics"][objective] for m in models], [m["cost"]["throughput"] for m in models]
    floor = quality[0] - accept["max_drop"] if accept else quality[0]
    fast = speed[0] * accept["min_speedup"] if accept else 0.0
    x = _Scale(0.0, 1.25 * max(*speed, fast), 62, _WIDTH - 16)
    y = _Scale(*_padded([*quality, floor], 0.35), 300, 14)
    parts = []
    if accept:
        parts.append(_tag("rect", x=x(fast), y=14, width=x.end - x(fast), height=y(floor) - 14, class_="gate"))
        limits = f"passes: at most {change(objective, accept['max_drop'])[1:]} lost, at least {accept['min_speedup']:g}×"
        parts.append(_text(limits, x.end - 8, 32, "good", "end"))
    parts += _levels(y, x.start, x.end, lambda value: metric(objective, value))
    parts += [_text(f"{tick:,.0f}", x(tick), 318, "soft", "middle") for tick in x.ticks(8)]
    parts.append(_text("throughput, rows per second", x.end, 336, "soft", "end"))
    largest, below = max(m["cost"]["bytes"] for m in models), 0.0
    for i in sorted(range(len(models)), key=lambda i: y(quality[i])):
        at, radius = (x(speed[i]), y(quality[i])), max(4.0, 26 * math.sqrt(models[i]["cost"]["bytes"] / largest))
        parts.append(_tag("circle", cx=at[0], cy=at[1], r=radius, class_=f"bubble c{i}"))
        below = max(at[1] - 2, below + 34)  # labels go down the page in the order of their bubbles, without overlap
        parts.append(_text(labels[i], at[0] + radius + 8, below, "strong"))
        parts.append(_text(f"{metric(objective, quality[i])}, {size(models[i]['cost']['bytes'])}", at[0] + radius + 8, below + 15, "small"))
    return Plot(_svg(parts, 342, f"{objective} against throughput"), [])


def segment_times(segments: list[Record]) -> Plot | None:
    """Seconds of each segment by part of the work; of each member where there are many segments."""
    timed = [s for s in segments if s.get("seconds")]
    rows: dict[str, dict[str, float]] = {}
    for s in sorted(timed, key=lambda s: (s["member"], s["segment"])):
        name = f"member {s['member']}" + (f", segment {s['segment'] + 1}" if len(timed) <= _MOST_BARS else "")
        row = rows.setdefault(name + (" (reused)" if s.get("reused") and len(timed) <= _MOST_BARS else ""), dict.fromkeys(_PARTS, 0.0))
        for part in _PARTS:
            row[part] += s["seconds"].get(part, 0.0)
    keys = [(colour, part) for part, colour in _PARTS.items() if any(row[part] for row in rows.values())]
    return Plot(_bars({n: [(_PARTS[p], p, v) for p, v in row.items()] for n, row in rows.items()}, "seconds by segment"), keys) if keys else None


def stage_times(stages: list[Record]) -> Plot | None:
    """Seconds of each stage of the run."""
    rows = {s["name"] + (" (reused)" if s.get("reused") else ""): [("c0", s["name"], s["seconds"])] for s in stages}
    return Plot(_bars(rows, "seconds by stage"), []) if rows else None


def _bars(rows: dict[str, list[tuple[str, str, float]]], label: str) -> Markup:
    """Horizontal bars of (colour, part, seconds), each with its sum."""
    x = _Scale(0.0, max(sum(v for *_, v in row) for row in rows.values()), 210, _WIDTH - 90)
    parts = []
    for i, (name, row) in enumerate(rows.items()):
        y, done = 24.0 * i, 0.0
        parts.append(_text(name, 200, y + 15, "soft", "end"))
        for colour, part, seconds in row:
            hint = _tag("title", f"{part}: {duration(seconds)}")
            parts.append(_tag("rect", hint, x=x(done), y=y + 3, width=x(done + seconds) - x(done), height=16, class_=f"bar {colour}"))
            done += seconds
        parts.append(_text(duration(done), x(done) + 8, y + 15, "small"))
    return _svg(parts, 24.0 * len(rows), label)


def units(before: dict[str, int], after: dict[str, int]) -> Plot | None:
    """Units of each layer that are kept, beside those it had."""
    if not before:
        return None
    parts = []
    for i, (layer, had) in enumerate(before.items()):
        y, kept = 22.0 * i, after.get(layer, 0)
        shown = layer if len(layer) <= 42 else "…" + layer[-41:]
        x = _Scale(0.0, had, 300, _WIDTH - 150)
        parts += [
            _text(shown, 290, y + 14, "soft", "end"),
            _tag("rect", x=x.start, y=y + 3, width=x.end - x.start, height=14, class_="had"),
            _tag("rect", _tag("title", layer), x=x.start, y=y + 3, width=x(kept) - x.start, height=14, class_="bar c0"),
            _text(f"{had:,} → {kept:,} ({kept / (had or 1):.0%})", x.end + 10, y + 14, "small"),
        ]
    return Plot(_svg(parts, 22.0 * len(before), "units kept per layer"), [("c0", "kept"), ("had", "removed")])
