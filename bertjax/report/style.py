"""The style sheet of the report for light mode, dark mode, narrow windows and print. It loads no fonts or images."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --muted: #5c6168; --line: #e0e2e5; --shade: #eef1f6;
  --accent: #2458a6; --good: #17683f; --good-soft: #d9f2e3; --fair: #7a4f00; --fair-soft: #fdedc8;
  --bad: #a5211a; --bad-soft: #fbdedb;
  --c1: #2458a6; --c2: #c2571c; --c3: #23785b; --c4: #8a4fbf; --c5: #94690a; --c6: #c03a6b; --c7: #2f7f8f;
  --c8: #6b6f76; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1b1e23; --ink: #e8e9ec; --muted: #a3aab4; --line: #31363e; --shade: #242a33;
  --accent: #8bb4f0; --good: #7fd9a6; --good-soft: #1d3d2c; --fair: #ecc06a; --fair-soft: #43361a;
  --bad: #f59a92; --bad-soft: #4a2523;
  --c1: #7eaef2; --c2: #f09a62; --c3: #66c7a3; --c4: #c39af0; --c5: #dfba57; --c6: #ee83a9; --c7: #6cc3d5;
  --c8: #a9aeb6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1104px; margin: 0 auto; padding: 40px 32px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; margin: 48px 0 14px; overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 28px 0 10px; overflow-wrap: anywhere; }
p { margin: 0 0 12px; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.eyebrow { color: var(--muted); font-size: 12px; letter-spacing: 0.08em; text-transform: uppercase; margin: 0 0 6px; }
.muted { color: var(--muted); }
.small { font-size: 13px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 20px; }
.title { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px; font-size: 13.5px; }
nav a { max-width: 300px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 14px 0 0; font-size: 13.5px; }
.facts div { display: flex; gap: 7px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.pill { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: 12.5px; font-weight: 600;
  white-space: nowrap; vertical-align: 1px; color: var(--muted); background: var(--shade); }
.good { color: var(--good); background: var(--good-soft); }
.fair { color: var(--fair); background: var(--fair-soft); }
.bad { color: var(--bad); background: var(--bad-soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 12px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--muted); font-size: 12.5px; font-weight: 600; white-space: nowrap; }
thead th { max-width: 220px; overflow: hidden; text-overflow: ellipsis; }
th, td { padding: 9px 16px; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { color: var(--ink); font-size: 14px; white-space: normal; overflow-wrap: break-word; max-width: 260px; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.best { font-weight: 700; }
.differs td { overflow-wrap: anywhere; min-width: 110px; max-width: 320px; }
.scores { display: flex; flex-wrap: wrap; gap: 2px 22px; margin: 0; min-width: 170px; }
.scores div { display: flex; gap: 7px; align-items: baseline; }
.scores dt { color: var(--muted); font-size: 13px; }
.scores dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.bar { display: block; width: 100%; min-width: 110px; height: 8px; border-radius: 4px; background: var(--shade);
  margin-top: 8px; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--muted); opacity: 0.6; }
.own .bar i { background: var(--accent); opacity: 1; }
.own > * { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; }
.charts.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
figure { display: flex; flex-direction: column; margin: 0; min-width: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px 8px 12px; }
figure.wide { grid-column: 1 / -1; }
figure.scatter { max-width: 460px; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; font-size: 13px;
  margin-bottom: 10px; overflow-wrap: anywhere; }
figcaption b { font-size: 13.5px; margin-right: 4px; }
.key { color: var(--muted); max-width: 340px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.key i { display: inline-block; width: 16px; height: 0; border-top: 3px solid; border-radius: 2px; margin-right: 6px;
  vertical-align: 4px; }
.key.dots::before { content: "- • -"; margin-right: 6px; }
.note { color: var(--muted); font-size: 12px; margin: 0 0 2px 50px; }
.plot { padding: 0 0 24px 50px; margin-top: auto; }
.area { position: relative; height: 150px; touch-action: pan-y; cursor: crosshair; border-radius: 2px; }
.wide .area { height: 280px; }
.scatter .area { height: auto; aspect-ratio: 1; }
.area svg { display: block; position: absolute; width: 100%; height: 100%; overflow: visible; }
.area svg * { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--line); }
.diagonal { stroke: var(--muted); stroke-dasharray: 4 4; }
.line { stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.raw { stroke-width: 1; opacity: 0.35; }
.line.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.area svg .range { fill: currentColor; stroke: currentColor; opacity: 0.16; stroke-width: 0.5; }
.area svg .band { fill: var(--shade); }
.dots { stroke-width: 7; stroke-linecap: round; }
.dots.faint { stroke-width: 6; opacity: 0.45; }
.mark { stroke: var(--muted); stroke-width: 1.2; }
.mark.resume { stroke-dasharray: 3 4; }
.mark.nonfinite { stroke: var(--bad); stroke-width: 2.5; }
.area span { position: absolute; color: var(--muted); font-size: 11.5px; line-height: 14px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.area .y { right: 100%; margin: -7px 8px 0 0; }
.area .x { top: 100%; margin-top: 6px; transform: translateX(-50%); }
.area .of { top: 3px; padding: 0 4px; text-align: center; overflow: hidden; text-overflow: ellipsis; }
.area .of.low { top: 18px; }
.area .axis { top: 100%; right: 0; margin-top: 20px; }
.plot.named { padding-bottom: 38px; }
.cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--muted); pointer-events: none; }
.cursor-dots i { position: absolute; width: 9px; height: 9px; margin: -4.5px; border-radius: 50%;
  border: 1.5px solid var(--card); pointer-events: none; }
.tip { position: absolute; top: 8px; z-index: 2; max-width: min(330px, 100%); padding: 7px 10px; border-radius: 8px;
  background: var(--card); border: 1px solid var(--line); box-shadow: 0 3px 14px #0003; font-size: 12.5px;
  line-height: 1.45; pointer-events: none; overflow-wrap: anywhere; }
.area .tip span { position: static; white-space: normal; font-size: inherit; line-height: inherit; }
.tip-head { font-weight: 600; }
.tip-row { display: flex; gap: 7px; align-items: baseline; }
.tip-row i { flex: none; width: 9px; height: 9px; border-radius: 50%; }
.tip-row b { margin-left: auto; padding-left: 10px; font-variant-numeric: tabular-nums; text-align: right; }
.tip-note { color: var(--muted); }
[hidden] { display: none !important; }
.below { margin: 12px 0; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: 3px 14px; margin: 0 6px 10px 0; border: 1px solid var(--line);
  border-radius: 99px; font-size: 13px; cursor: pointer; }
.tabs > input:checked + label { background: var(--accent); border-color: var(--accent); color: var(--page); }
.tabs > input:focus-visible + label { outline: 2px solid var(--accent); outline-offset: 2px; }
.tabs > .charts { display: none; }
.tabs > input:nth-of-type(1):checked ~ .charts:nth-of-type(1), .tabs > input:nth-of-type(2):checked ~
  .charts:nth-of-type(2), .tabs > input:nth-of-type(3):checked ~ .charts:nth-of-type(3) { display: grid; }
.samples { display: grid; gap: 10px; }
.sample { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px 28px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.sample > * { min-width: 0; overflow-wrap: anywhere; }
.sample.one { grid-template-columns: minmax(0, 1fr); }
.question { font-weight: 600; margin: 0 0 4px; }
.context { color: var(--muted); font-size: 13.5px; margin: 0; white-space: pre-line; }
.text { unicode-bidi: isolate; }
.said-by { display: grid; grid-template-columns: minmax(72px, max-content) minmax(0, 1fr); gap: 5px 14px; margin: 0;
  align-content: start; font-size: 14px; }
.said-by dt { color: var(--muted); font-size: 12.5px; padding-top: 1px; overflow-wrap: anywhere; max-width: 130px; }
.said-by dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.said-by .pill { margin-right: 8px; white-space: normal; overflow-wrap: anywhere; border-radius: 12px; }
mark { color: var(--ink); background: var(--good-soft); border-radius: 3px; padding: 1px 2px; }
mark.said { background: var(--bad-soft); text-decoration: underline wavy 1px var(--bad); text-underline-offset: 3px; }
.runners { margin: 6px 0 0; padding: 0; list-style: none; color: var(--muted); font-size: 12.5px; }
.runners li { display: flex; justify-content: space-between; gap: 12px; font-variant-numeric: tabular-nums; }
.runners li > span:last-child { white-space: nowrap; }
.masked { margin: 0; line-height: 2; }
.slot { padding: 2px 6px; border-radius: 5px; font-weight: 600; }
.slot sup { font-size: 10.5px; font-weight: 400; margin-left: 3px; line-height: 1; }
.guesses { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 3px 22px; margin: 4px 0 0;
  padding: 0; list-style: none; font-size: 12.5px; color: var(--muted); }
.guesses b { color: var(--ink); font-weight: 600; }
.confusion { width: auto; }
.confusion caption { margin: 0; padding: 8px 12px; text-align: left; }
.confusion th, .confusion td { padding: 6px 10px; text-align: right; border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
.confusion thead th, .confusion tbody th { font-size: 12.5px; white-space: nowrap; min-width: 0; max-width: 150px;
  overflow: hidden; text-overflow: ellipsis; }
.confusion td { min-width: 48px; background: color-mix(in srgb, var(--bad) calc(var(--share) * 55%), var(--card)); }
.confusion td.hit { background: color-mix(in srgb, var(--good) calc(var(--share) * 45%), var(--card)); }
.samples.two .sample { align-content: start; }
.heat tbody th { max-width: none; text-align: left; }
.samples.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(76px, 1fr); gap: 4px 8px; margin: 0 0 6px; }
.bars dt { font-size: 13px; color: var(--muted); }
.bars dd { display: flex; gap: 10px; align-items: center; margin: 0; }
.bars .bar { margin: 0; flex: 1 1 0; min-width: 16px; }
.bars .bar i { background: var(--accent); opacity: 1; }
.bars b { min-width: 38px; text-align: right; font-size: 13px; font-weight: 600; font-variant-numeric: tabular-nums; }
.words td { white-space: normal; min-width: 150px; }
.side { display: grid; grid-template-columns: minmax(0, max-content) minmax(280px, 1fr); gap: 12px;
  align-items: start; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 12px; }
summary { cursor: pointer; padding: 10px 16px; font-weight: 600; overflow-wrap: anywhere; }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo,
  Consolas, "DejaVu Sans Mono", monospace; }
details .scroll { border: 0; border-top: 1px solid var(--line); border-radius: 0 0 10px 10px; }
details .samples { padding: 4px 12px 12px; }
footer { margin-top: 40px; color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
@media screen and (max-width: 860px) {
  .charts, .charts.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .side { grid-template-columns: minmax(0, 1fr); }
}
@media screen and (max-width: 620px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 25px; }
  .charts, .charts.two, .sample, .samples.two .sample { align-content: start; }
.heat tbody th { max-width: none; text-align: left; }
.samples.two { grid-template-columns: minmax(0, 1fr); }
  .wide .area { height: 210px; }
  .wide .x:nth-of-type(even) { display: none; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: 8px 12px; }
}
@media print {
  @page { margin: 14mm; }
  :root { color-scheme: light; }
  body { background: none; font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  figure, .tile, .sample, tr, header { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table, tbody th { font-size: 9.5pt; }
  th { white-space: normal; }
  th, td { padding: 5px 7px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
