"""Attention maps as a grid of small drawings, layers by heads; the script of the page enlarges one of them.

A drawing is SVG with a path for each level of attention, so that the grid is complete without the script. The values
for the enlarged map are a text with a character for each pair of tokens.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.report.charts import script_json

LEVELS = 8  # of a small map, by the square root of the attention, which shows weak attention too
_FIRST, _STEPS = 35, 90  # the character of 0 in the values, the first after the quote, and the steps from 0 to 1


def encode_values(attention: np.ndarray) -> str:
    """float [..., S, S] of 0..1 -> a character for each value, in steps of 1/90."""
    codes = _FIRST + np.clip(np.rint(np.asarray(attention) * _STEPS), 0, _STEPS).astype(int)
    return "".join(map(chr, codes.ravel().tolist()))


def small_map(attention: np.ndarray) -> str:
    """One map [S, S] as SVG: queries from top to bottom, keys from left to right."""
    size = len(attention)
    levels = np.clip(np.rint(np.sqrt(np.asarray(attention)) * LEVELS), 0, LEVELS).astype(int)
    paths = []
    for level in range(1, LEVELS + 1):
        cells = "".join(_runs(row, number) for number, row in enumerate(levels == level))
        if cells:
            paths.append(f'<path opacity="{level / LEVELS:g}" d="{cells}"/>')
    return f'<svg viewBox="0 0 {size} {size}" aria-hidden="true">{"".join(paths)}</svg>'


def _runs(row: np.ndarray, number: int) -> str:
    """Cells side by side as one rectangle each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return "".join(f"M{a} {number}h{b - a}v1h-{b - a}z" for a, b in pairs)


def attention_section(sentences: Sequence[Mapping[str, Any]]) -> str:
    """The grids of all sentences; each is {"text", "tokens", "maps" [L, H, S, S]}."""
    grids = "".join(_sentence(sentence, number) for number, sentence in enumerate(sentences))
    note = (
        "Rows of the grid are layers, the first at the top; columns are heads. In a map, each row is a token and "
        "shows how much it attends to each token, from left to right; darker is more, and a row sums to 1. Choose a "
        "map to enlarge it."
    )
    return f'<section id="attention"><h2>Attention</h2><p class="small muted">{note}</p>{grids}</section>'


def _sentence(sentence: Mapping[str, Any], number: int) -> str:
    maps = np.asarray(sentence["maps"], float)
    heads = maps.shape[1]
    head = "".join(f"<span>{head}</span>" for head in range(1, heads + 1))
    lines = [f'<div class="heads"><span></span>{head}</div>']
    for layer, of_layer in enumerate(maps, 1):
        cells = "".join(
            f'<button type="button" aria-label="layer {layer}, head {head}">{small_map(one)}</button>'
            for head, one in enumerate(of_layer, 1)
        )
        lines.append(f"<div><span>{layer}</span>{cells}</div>")
    data = {"tokens": list(sentence["tokens"]), "heads": heads, "values": encode_values(maps)}
    shown = f'<span class="text" dir="auto">{html.escape(sentence["text"])}</span>'
    return (
        f'<div class="attention" id="sentence-{number + 1}"><h3>{shown}</h3><div class="both">'
        f'<div class="grid-of-maps" style="--heads: {heads}" tabindex="0">{"".join(lines)}</div>'
        f'<div class="enlarged" hidden><p class="small"><b></b> <span class="muted" role="status"></span></p>'
        f'<div class="sheet" tabindex="0"></div></div></div>'
        f'<script type="application/json">{script_json(data)}</script></div>'
    )
