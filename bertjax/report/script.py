"""The script of the report pages: the values of a chart under the pointer, or at the place chosen with the arrow keys.

The page is complete without it. It reads only the JSON of the chart that it belongs to and writes only text.
"""

import base64
import hashlib

SCRIPT = r"""
"use strict";
(() => {
  const plain = (v) => {
    const a = Math.abs(v);
    if (Number.isInteger(v) && a < 1e15) return v.toLocaleString("en-US");
    if (a >= 1e4 || (a < 1e-3 && a > 0)) return v.toExponential(3).replace("e+", "e");
    return String(+v.toPrecision(5));
  };
  const compact = (v) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(v) >= 0.9995 * size) return +(v / size).toPrecision(4) + letter;
    return String(+v.toPrecision(4));
  };
  const duration = (v) => {
    const s = Math.max(0, Math.round(v)), two = (n) => String(n).padStart(2, "0");
    if (s < 60) return s + "s";
    if (s < 3600) return Math.floor(s / 60) + "m" + two(s % 60) + "s";
    if (s < 86400) return Math.floor(s / 3600) + "h" + two(Math.floor(s % 3600 / 60)) + "m";
    return Math.floor(s / 86400) + "d" + two(Math.floor(s % 86400 / 3600)) + "h";
  };
  const write = (v, unit) =>
    unit === "%" ? +v.toFixed(2) + "%" : unit === "count" || unit === "tokens" ? compact(v) :
    unit === "seconds" ? duration(v) : unit === "GiB" ?
    +v.toPrecision(4) + " GiB" : plain(v);
  const element = (tag, style, text) => {
    const made = document.createElement(tag);
    if (style) made.className = style;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  for (const figure of document.querySelectorAll("figure")) {
    const source = figure.querySelector("script"), area = figure.querySelector(".area");
    if (!source || !area) continue;
    const chart = JSON.parse(source.textContent);
    const log = (v) => chart.log ? Math.log10(v) : v;
    const logX = (v) => chart.logX ? Math.log10(v) : v;
    const width = logX(chart.x[1]) - logX(chart.x[0]) || 1;
    const xAt = (v) => (logX(v) - logX(chart.x[0])) / width;
    const valueAt = (f) => chart.logX ? 10 ** (logX(chart.x[0]) + f * width) : chart.x[0] + f * width;
    const yAt = (v) => 1 - (log(v) - log(chart.y[0])) / (log(chart.y[1]) - log(chart.y[0]) || 1);
    const drawn = chart.series.filter((s) => s.y.some((v) => v !== null));
    if (!drawn.length) continue;
    const stops = [...new Set(drawn.flatMap((s) => s.x))].sort((a, b) => a - b);
    const line = element("div", "cursor"), tip = element("div", "tip"), dots = element("div", "cursor-dots");
    tip.setAttribute("role", "status");
    for (const made of [line, dots, tip]) { made.hidden = true; area.append(made); }
    area.tabIndex = 0;
    area.setAttribute("role", "group");
    area.setAttribute("aria-label", figure.querySelector("figcaption b").textContent + ", arrow keys show values");
    let place = stops.length - 1;

    const nearest = (list, v) => {
      let low = 0, high = list.length - 1;
      while (high - low > 1) { const mid = (low + high) >> 1; if (list[mid] <= v) low = mid; else high = mid; }
      return Math.abs(logX(list[low]) - logX(v)) <= Math.abs(logX(list[high]) - logX(v)) ? low : high;
    };
    const row = (colour, name, value) => {
      const made = element("div", "tip-row"), swatch = element("i");
      if (colour) swatch.style.background = "var(--c" + colour + ")";
      made.append(swatch, element("span", "", name), element("b", "", value));
      return made;
    };
    const dot = (x, y, colour) => {
      const made = element("i");
      made.style.left = 100 * xAt(x) + "%";
      made.style.top = 100 * yAt(y) + "%";
      made.style.background = "var(--c" + colour + ")";
      return made;
    };
    const show = (x) => {
      tip.replaceChildren(element("div", "tip-head", chart.xUnit === "step" ? "step " + plain(Math.round(x)) :
        chart.xUnit === "tokens" ? compact(x) + " tokens" :
        chart.xUnit === "examples" ? plain(x) + " examples" : write(x, chart.xUnit)));
      dots.replaceChildren();
      for (const s of drawn) {
        const i = nearest(s.x, x);
        if (Math.abs(xAt(s.x[i]) - xAt(x)) > (s.eval ? 0.012 : 0.03)) continue;
        const name = s.label + (s.eval ? " (eval)" : "");
        if (s.y[i] === null) { tip.append(row(s.colour, name, "not finite")); continue; }
        let text = write(s.y[i], chart.unit);
        if (s.n && s.n[i] > 1)
          text += " (" + write(s.low[i], chart.unit) + " to " + write(s.high[i], chart.unit) + " in " + s.n[i] + ")";
        tip.append(row(s.colour, name, text));
        dots.append(dot(s.x[i], s.y[i], s.colour));
      }
      for (const [a, b, label] of chart.bands)
        if (a <= x && x <= b && !drawn.some((s) => s.label === label)) {
          tip.append(element("div", "tip-note", label));
          break;
        }
      for (const [at, text] of chart.marks)
        if (Math.abs(xAt(at) - xAt(x)) <= 0.006) tip.append(element("div", "tip-note", text));
      line.style.left = 100 * xAt(x) + "%";
      reveal(xAt(x));
    };
    const showPoint = (x, y) => {
      const s = drawn[0];
      let best = 0, least = Infinity;
      s.x.forEach((v, i) => {
        const d = (xAt(v) - x) ** 2 + (yAt(s.y[i]) - y) ** 2;
        if (d < least) { least = d; best = i; }
      });
      tip.replaceChildren(row(0, "label", plain(s.x[best])), row(s.colour, "prediction", plain(s.y[best])));
      dots.replaceChildren(dot(s.x[best], s.y[best], s.colour));
      line.style.left = 100 * xAt(s.x[best]) + "%";
      reveal(xAt(s.x[best]));
    };
    const reveal = (fraction) => {
      line.hidden = dots.hidden = tip.hidden = false;
      const room = area.clientWidth - tip.offsetWidth, wanted = fraction * area.clientWidth + 14;
      const other = wanted - tip.offsetWidth - 28;
      tip.style.left = Math.min(Math.max(wanted > room && other > 0 ? other : wanted, 0), Math.max(room, 0)) + "px";
    };
    const hide = () => { line.hidden = dots.hidden = tip.hidden = true; };
    const follow = (event) => {
      const box = area.getBoundingClientRect();
      const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      if (chart.scatter) return showPoint(x, (event.clientY - box.top) / box.height);
      place = nearest(stops, valueAt(x));
      show(stops[place]);
    };
    area.addEventListener("pointermove", follow);
    area.addEventListener("pointerdown", follow);
    area.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    document.addEventListener("pointerdown", (event) => { if (!area.contains(event.target)) hide(); });
    area.addEventListener("blur", hide);
    area.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: stops.length - 1,
        PageUp: place - 10, PageDown: place + 10 };
      if (event.key === "Escape") return hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      place = Math.min(Math.max(moves[event.key], 0), stops.length - 1);
      if (!chart.scatter) return show(stops[place]);
      const at = drawn[0].x.indexOf(stops[place]);
      showPoint(xAt(stops[place]), yAt(drawn[0].y[at]));
    });
  }
})();
"""


def digest(script: str) -> str:
    """The SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
