"""Charts as inline SVG. Colours and fonts come from the page, for light mode, dark mode and print."""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.report.record import Episode
from bertjax.training.monitor import console

MAX_POINTS = 400

# Placeholder colours, replaced by CSS variables of the page.
_INK_COLOUR, _GRID, _SHADE = "#0a0a01", "#0a0a02", "#0a0a03"
SERIES = [f"#0a0b0{i}" for i in range(1, 7)]
_VARIABLES = {_INK_COLOUR: "--muted", _GRID: "--line", _SHADE: "--shade"}
_VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(SERIES, 1)}


@dataclass(frozen=True)
class Series:
    """A curve: `steps` and `values` of equal length. `points`: sparse values, drawn with markers."""

    label: str
    steps: list[int]
    values: list[float]
    colour: int = 0  # index of the colour, the same for a metric in training and evaluation
    points: bool = False


@dataclass(frozen=True)
class Chart:
    title: str
    series: list[Series]
    unit: str = ""  # "%", "count", "rate" or "": how the axis is labelled
    wide: bool = False
    smoothed: bool = True


def load_matplotlib() -> Any:
    """The matplotlib module; UserError when the extra is missing."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise UserError("report: charts need matplotlib; run: pip install 'bertjax[report]'") from None
    return matplotlib


def draw(chart: Chart, key: str, episodes: list[Episode] | None = None) -> str:
    """A chart as one <svg> element whose ids start with `key`. Episodes are shaded alternately and numbered."""
    matplotlib = load_matplotlib()
    style = {
        "svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False, "font.size": 10.5, "path.simplify": True,
        "text.color": _INK_COLOUR, "xtick.color": _INK_COLOUR, "ytick.color": _INK_COLOUR, "axes.edgecolor": _GRID,
        "axes.linewidth": 1,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        # One point of the drawing is one pixel at full width.
        size = (14.4, 3.7) if chart.wide else (4.75, 2.75)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for series in chart.series:
            _draw_curve(axes, series, chart.smoothed)
        _format_axes(axes, chart, matplotlib.ticker)
        _shade_episodes(axes, episodes or [], labels=chart.wide)
        out = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=empty)
    return _inline_svg(out.getvalue(), key, f"{chart.title} by step")


def _draw_curve(axes: Any, series: Series, smoothed: bool) -> None:
    colour = SERIES[series.colour % len(SERIES)]
    steps, values = np.asarray(series.steps, float), np.asarray(series.values, float)
    if series.points or len(steps) == 1:
        axes.plot(steps, values, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), marker="o", markersize=4.5)
        return
    steps, values = bucket_means(steps, values, MAX_POINTS)
    if len(steps) <= 60 or not smoothed:
        axes.plot(steps, values, color=colour, linewidth=1.8, solid_joinstyle="round")
        return
    axes.plot(steps, values, color=colour, linewidth=0.9, alpha=0.3)
    axes.plot(steps, smooth(values, len(values) // 40), color=colour, linewidth=1.8, solid_joinstyle="round")


def bucket_means(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over buckets of neighbours: steps, values [N] float64 -> two arrays [min(N, most)]."""
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(int)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over `reach` neighbours on either side, [N] -> [N]; symmetric near the start, where curves are steep."""
    place = np.arange(len(values))
    before = np.minimum(reach, place)
    after = np.minimum(before, place[::-1])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + after + 1] - sums[place - before]) / (before + after + 1)


def _format_axes(axes: Any, chart: Chart, ticker: Any) -> None:
    formats = {
        "%": lambda value, _: f"{value:g}%",
        "count": lambda value, _: console.compact(value) if value else "0",
        "rate": lambda value, _: re.sub(r"\.?0*e-0*", "e-", f"{value:.2e}") if value else "0",
        "": lambda value, _: f"{value:g}",
    }
    axes.yaxis.set_major_locator(ticker.MaxNLocator(6 if chart.wide else 5))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(formats[chart.unit]))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(10 if chart.wide else 5, integer=True))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: console.compact(value) if value else "0"))
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.margins(x=0.01, y=0.08)
    if chart.unit in ("count", "rate"):
        axes.set_ylim(bottom=0)


def _shade_episodes(axes: Any, episodes: list[Episode], labels: bool) -> None:
    """Shades every other episode; on a wide chart, labels each with its number and trained parameters."""
    if len(episodes) < 2:
        return
    for place, episode in enumerate(episodes):
        if place % 2 == 0:
            axes.axvspan(episode.first_step, episode.last_step, color=_SHADE, linewidth=0, zorder=0)
        if labels and episode.last_step > episode.first_step:
            text = str(episode.number)
            if len(episodes) <= 6:
                trained = episode.trainable_parameters
                text = f"episode {episode.number}" + (f" · {console.compact(trained)} trained" if trained else "")
            middle = (episode.first_step + episode.last_step) / 2
            style = {"ha": "center", "va": "top", "size": 9.5, "color": _INK_COLOUR}
            axes.text(middle, 0.985, text, transform=axes.get_xaxis_transform(), **style)


def _inline_svg(svg: str, key: str, title: str) -> str:
    """A matplotlib SVG document as an HTML element: no prologue, no external URLs, unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", rest).replace('xlink:href="#', f'href="#{key}-')
    rest = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), rest)
    rest = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", rest)
    rest = re.sub(r"font-family: [^;\"]*;? ?", "", rest)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    return f'<svg {box[0] if box else ""} role="img" aria-label="{title}">{rest.strip()}'
