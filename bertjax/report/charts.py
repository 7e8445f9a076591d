"""Charts as inline SVG with HTML labels: they fit any width, take their colours from the page and work without scripts.

The numbers of a chart are on the page as JSON too, from which script.py shows those under the pointer.
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bertjax.report import scales
from bertjax.training.monitor import console

MAX_POINTS = 400  # of a curve; beyond, neighbours are combined
NUM_COLOURS = 8  # --c1.. of the style sheet
_W, _H = 1000, 300  # of the drawing, which the page stretches


@dataclass(frozen=True)
class Series:
    """A curve: `x` and `y` of equal length, NaN where a value is not finite. `points`: sparse values with markers."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0  # the same for a metric in training and evaluation
    points: bool = False


@dataclass(frozen=True)
class Band:
    """A shaded or plain range of x, such as an episode or a stage."""

    start: float
    stop: float
    label: str


@dataclass(frozen=True)
class Mark:
    """An event at x: kind resume, evaluation or nonfinite."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    title: str
    series: list[Series]
    unit: str = ""  # "%", "count", "rate", "GiB" or "": how the values are written
    x_unit: str = "step"  # step, tokens, seconds, examples or, in a scatter plot, a name
    log_x: bool = False
    wide: bool = False
    smoothed: bool = True
    scatter: bool = False  # points of (label, prediction) and their diagonal
    bands: list[Band] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    note: str = ""


def figure(chart: Chart) -> str:
    """A chart as a <figure>."""
    shown = [_points_of(chart, series) for series in chart.series]
    every = np.concatenate([np.concatenate([curve.low, curve.high]) for curve in shown] or [np.zeros(0)])
    every = every[np.isfinite(every)]
    log = not chart.scatter and chart.unit == "" and scales.wants_log(every)
    y_range = scales.axis_range(every, chart.unit in ("count", "rate", "GiB"), log)
    xs = np.concatenate([np.asarray(series.x, float) for series in chart.series] or [np.zeros(0)])
    x_range = (float(xs.min()), float(xs.max())) if len(xs) else (0.0, 1.0)
    if chart.scatter:
        x_range = y_range = scales.axis_range(np.concatenate([every, xs]), False, False)
    elif chart.bands:
        x_range = (min(x_range[0], chart.bands[0].start), max(x_range[1], chart.bands[-1].stop))
        if chart.wide and not log:  # room for the names
            y_range = (y_range[0], y_range[1] + 0.09 * (y_range[1] - y_range[0]))
    elif x_range[0] == x_range[1]:
        x_range = (x_range[0] - 0.5, x_range[1] + 0.5)
    axes = _Axes(x_range, y_range, log, chart.log_x and 0 < x_range[0] < x_range[1])
    body = [_bands_svg(chart.bands, axes), _grid_svg(chart, axes), _marks_svg(chart.marks, axes)]
    body += [_curve_svg(curve, series, chart, axes) for curve, series in zip(shown, chart.series, strict=True)]
    svg = (
        f'<svg viewBox="0 0 {_W} {_H}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(_description(chart))}">{"".join(body)}</svg>'
    )
    note = " ".join(
        filter(None, [chart.note, "Logarithmic axis." if log else "", _marks_note(chart.marks) if chart.wide else ""])
    )
    return (
        f"<figure{' class=wide' * chart.wide}{' class=scatter' * chart.scatter}>"
        f"<figcaption><b>{html.escape(chart.title)}</b>{_keys(chart)}</figcaption>"
        f'<div class="plot{" named" * bool(_axis_name(chart))}">'
        f'<div class="area">{svg}{_labels(chart, axes)}</div></div>'
        f"{f'<p class=note>{html.escape(note)}</p>' * bool(note)}"
        f'<script type="application/json">{_data(chart, shown, axes)}</script></figure>'
    )


@dataclass(frozen=True)
class _Axes:
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool
    log_x: bool = False

    def x(self, value: float) -> float:
        """0..1 from left to right."""
        low, high = self.x_range
        if self.log_x:
            low, high, value = np.log10([low, high, value])
        return _fraction(value, low, high)

    def y(self, value: float) -> float:
        """0..1 from top to bottom."""
        low, high = self.y_range
        if self.log:
            low, high, value = np.log10([low, high, value])
        return 1 - _fraction(value, low, high)


def _fraction(value: float, low: float, high: float) -> float:
    """0 at low, 1 at high; halves, so that the difference of huge numbers stays finite."""
    return (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5


def _points_of(chart: Chart, series: Series) -> scales.Curve:
    most = len(series.x) if series.points or chart.scatter else MAX_POINTS
    return scales.downsample(series.x, series.y, max(most, 1))


# ---- the drawing ----------------------------------------------------------------------------------------------------


def _curve_svg(curve: scales.Curve, series: Series, chart: Chart, axes: _Axes) -> str:
    colour = f"var(--c{series.colour % NUM_COLOURS + 1})"
    if series.points or chart.scatter or len(curve.x) == 1:
        line = "" if chart.scatter else _path(curve.x, curve.y, axes, f'class="line dashed" stroke="{colour}"')
        dots = "".join(f"M{_at(a, b, axes)}h0" for a, b in zip(curve.x, curve.y, strict=True) if np.isfinite(b))
        style = "dots faint" if chart.scatter else "dots"
        return f'{line}<path class="{style}" d="{dots}" stroke="{colour}"/>' if dots else ""
    parts = []
    if not curve.is_exact:
        parts.append(_range_svg(curve, axes, colour))
    if chart.smoothed and len(curve.x) > 60:
        if curve.is_exact:
            parts.append(_path(curve.x, curve.y, axes, f'class="line raw" stroke="{colour}"'))
        smoothed = curve.y.copy()
        for part in scales.runs_of_finite(curve.y):
            # On a logarithmic axis the logarithms, or a single spike would become a plateau.
            values = np.log(curve.y[part]) if axes.log else curve.y[part]
            values = scales.smooth(values, len(curve.y) // 40)
            smoothed[part] = np.exp(values) if axes.log else values
        parts.append(_path(curve.x, smoothed, axes, f'class="line" stroke="{colour}"'))
    else:
        parts.append(_path(curve.x, curve.y, axes, f'class="line" stroke="{colour}"'))
    return "".join(parts)


def _path(x: np.ndarray, y: np.ndarray, axes: _Axes, attributes: str) -> str:
    """Lines through finite neighbours; a value alone is a dot."""
    d = ""
    for part in scales.runs_of_finite(y):
        points = [_at(a, b, axes) for a, b in zip(x[part], y[part], strict=True)]
        d += f"M{points[0]}" + ("L" + " ".join(points[1:]) if len(points) > 1 else "h0")
    return f'<path {attributes} d="{d}"/>' if d else ""


def _range_svg(curve: scales.Curve, axes: _Axes, colour: str) -> str:
    """The area between minima and maxima."""
    d = ""
    for part in scales.runs_of_finite(curve.y):
        upper = [_at(a, b, axes) for a, b in zip(curve.x[part], curve.high[part], strict=True)]
        lower = [_at(a, b, axes) for a, b in zip(curve.x[part], curve.low[part], strict=True)]
        d += f"M{' '.join(upper)} {' '.join(reversed(lower))}Z"
    return f'<path class="range" d="{d}" style="color:{colour}"/>' if d else ""


def _at(x: float, y: float, axes: _Axes) -> str:
    return f"{_short(_W * axes.x(x))},{_short(_H * axes.y(y))}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _bands_svg(bands: Sequence[Band], axes: _Axes) -> str:
    """Every other band is shaded."""
    return "".join(
        f'<rect class="band" x="{_short(_W * axes.x(band.start))}" y="0" height="{_H}" '
        f'width="{_short(_W * (axes.x(band.stop) - axes.x(band.start)))}"/>'
        for band in bands[::2]
        if len(bands) > 1
    )


def _grid_svg(chart: Chart, axes: _Axes) -> str:
    rows = "".join(f"M0,{_short(_H * axes.y(value))}H{_W}" for value in _y_ticks(chart, axes))
    diagonal = f'<path class="diagonal" d="M0,{_H}L{_W},0"/>' if chart.scatter else ""
    return f'<path class="grid" d="{rows}M0,{_H}H{_W}"/>{diagonal}'


def _marks_svg(marks: Sequence[Mark], axes: _Axes) -> str:
    """Resumes are vertical lines, evaluations short ones at the bottom, non-finite values short ones at the top."""
    spans = {"resume": f"V{_H}", "evaluation": f"m0,{_H}v-16", "nonfinite": "v16"}
    return "".join(
        f'<path class="mark {mark.kind}" d="M{_short(_W * axes.x(mark.x))},0{spans[mark.kind]}"/>'
        for mark in {(mark.x, mark.kind): mark for mark in marks}.values()
        if 0 <= axes.x(mark.x) <= 1
    )


# ---- the text around it ---------------------------------------------------------------------------------------------


def _y_ticks(chart: Chart, axes: _Axes) -> list[float]:
    return scales.ticks(*axes.y_range, 5 if chart.wide or chart.scatter else 4, log=axes.log)


def _labels(chart: Chart, axes: _Axes) -> str:
    rows = [
        f'<span class="y" style="top:{100 * axes.y(v):.2f}%">{axis_text(v, chart.unit)}</span>'
        for v in _y_ticks(chart, axes)
    ]
    unit = "" if chart.scatter else chart.x_unit
    whole = not chart.scatter and chart.x_unit != "seconds"
    for v in scales.ticks(*axes.x_range, 8 if chart.wide else 4, integers=whole, log=axes.log_x):
        rows.append(f'<span class="x" style="left:{100 * axes.x(v):.2f}%">{axis_text(v, unit)}</span>')
    for band in chart.bands if chart.wide and len(chart.bands) > 1 else ():
        left, right = axes.x(band.start), axes.x(band.stop)
        if right - left >= 0.05:
            text = html.escape(band.label)
            name = "of low" if any(mark.kind == "nonfinite" for mark in chart.marks) else "of"  # below those marks
            at = f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"
            rows.append(f'<span class="{name}" style="{at}" title="{text}">{text}</span>')
    return "".join(rows) + (f'<span class="axis">{name}</span>' if (name := _axis_name(chart)) else "")


def _axis_name(chart: Chart) -> str:
    """Steps need no name."""
    return (
        ""
        if chart.scatter
        else {"seconds": "training time", "tokens": "tokens", "examples": "examples"}.get(chart.x_unit, "")
    )


def axis_text(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:g}%"
    if unit == "seconds":
        return console.duration(value)
    if unit == "GiB":
        return f"{value:g} GiB" if value else "0"
    if unit == "rate" or (value and (abs(value) < 1e-3 or abs(value) >= 1e6) and unit == ""):
        return re.sub(r"\.?0*e([+-])0*", r"e\1", f"{value:.2e}").replace("e+", "e") if value else "0"
    if unit in ("count", "step", "tokens", "examples"):
        return console.compact(value) if value else "0"
    return f"{value:g}"


def _keys(chart: Chart) -> str:
    entries = dict.fromkeys((series.colour, series.label) for series in chart.series)
    keys = "".join(key_html(colour, text) for colour, text in entries if len(entries) > 1)
    if any(series.points for series in chart.series) and not all(series.points for series in chart.series):
        keys += '<span class="key dots">eval</span>'
    return keys


def key_html(colour: int, text: str) -> str:
    """An entry of a legend."""
    shown = html.escape(text)
    swatch = f'<i style="color:var(--c{colour % NUM_COLOURS + 1})"></i>'
    title = f' title="{shown}"' if len(text) > 30 else ""
    return f'<span class="key"{title}>{swatch}{shown}</span>'


def _marks_note(marks: Iterable[Mark]) -> str:
    kinds = dict.fromkeys(mark.kind for mark in marks)
    words = {
        "resume": "Dashed lines: resumed here.", "evaluation": "Ticks at the bottom: evaluations.",
        "nonfinite": "Red ticks at the top: values that are not finite.",
    }  # fmt: skip
    return " ".join(words[kind] for kind in words if kind in kinds)


def _description(chart: Chart) -> str:
    """The chart in words, for screen readers."""
    parts = []
    for series in chart.series:
        finite = [(x, y) for x, y in zip(series.x, series.y, strict=True) if np.isfinite(float(y))]
        if finite and not chart.scatter:
            (a, first), (b, last) = finite[0], finite[-1]
            kind = " in evaluations" if series.points else ""
            places = ((a, first), (b, last))
            text = [f"{axis_text(float(f'{v:.4g}'), chart.unit)} at {axis_text(x, chart.x_unit)}" for x, v in places]
            parts.append(f"{series.label}{kind}: {' to '.join(dict.fromkeys(text))}")
        elif chart.scatter:
            parts.append(f"{len(finite):,} points")
    return f"{chart.title} by {chart.x_unit}. {'; '.join(parts) or 'no values'}"


def _data(chart: Chart, shown: Sequence[scales.Curve], axes: _Axes) -> str:
    """The numbers of the chart for the script, as JSON that is safe inside <script>."""
    series = []
    for curve, one in zip(shown, chart.series, strict=True):
        entry = {"label": one.label, "colour": one.colour % NUM_COLOURS + 1, "eval": one.points}
        entry |= {"x": _numbers(curve.x, 9), "y": _numbers(curve.y)}
        if not curve.is_exact:
            entry |= {"low": _numbers(curve.low), "high": _numbers(curve.high), "n": curve.counts.tolist()}
        series.append(entry)
    content = {
        "unit": chart.unit, "xUnit": chart.x_unit, "x": axes.x_range, "y": axes.y_range, "log": axes.log,
        "logX": axes.log_x, "scatter": chart.scatter, "series": series,
        "bands": [[b.start, b.stop, b.label] for b in chart.bands] if len(chart.bands) > 1 else [],
        "marks": [[m.x, m.text] for m in chart.marks],
    }  # fmt: skip
    return script_json(content)


def script_json(content: object) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _numbers(values: np.ndarray, digits: int = 5) -> list[float | int | None]:
    rounded = [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in values.tolist()]
    return [int(v) if v is not None and v == int(v) and abs(v) < 1e15 else v for v in rounded]
