"""The style sheet of the report for light mode, dark mode and print. It loads no fonts or images."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --muted: #63686f; --line: #e4e5e7; --shade: #eef1f6;
  --accent: #2458a6; --good: #1d7a4c; --good-soft: #d9f2e3; --fair: #8a5a00; --fair-soft: #fdedc8;
  --bad: #b3261e; --bad-soft: #fbdedb;
  --c1: #2458a6; --c2: #d0662a; --c3: #2a8a6a; --c4: #8a4fbf; --c5: #b8860b; --c6: #c03a6b; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1b1e23; --ink: #e8e9ec; --muted: #9ba2ac; --line: #2f343b; --shade: #232831;
  --accent: #8bb4f0; --good: #6fcf97; --good-soft: #1d3d2c; --fair: #e6b450; --fair-soft: #43361a;
  --bad: #f28b82; --bad-soft: #4a2523;
  --c1: #7eaef2; --c2: #f09a62; --c3: #66c7a3; --c4: #c39af0; --c5: #dfba57; --c6: #ee83a9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1104px; margin: 0 auto; padding: 40px 32px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; margin: 48px 0 14px; }
h3 { font-size: 15px; margin: 28px 0 10px; }
p { margin: 0 0 12px; }
.eyebrow { color: var(--muted); font-size: 12px; letter-spacing: 0.08em; text-transform: uppercase; margin: 0 0 6px; }
.muted { color: var(--muted); }
.small { font-size: 13px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 20px; }
.title { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 14px 0 0; font-size: 13.5px; }
.facts div { display: flex; gap: 7px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.pill { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: 12.5px; font-weight: 600;
  white-space: nowrap; vertical-align: 1px; }
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
th, td { padding: 9px 16px; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { color: var(--ink); font-size: 14px; white-space: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scores { display: flex; flex-wrap: wrap; gap: 2px 22px; margin: 0; }
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
figure { display: flex; flex-direction: column; justify-content: space-between;
  margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px 6px; }
figure.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; font-size: 13px;
  margin-bottom: 6px; }
figcaption b { font-size: 13.5px; margin-right: 4px; }
.key { color: var(--muted); white-space: nowrap; }
.key i { display: inline-block; width: 16px; height: 0; border-top: 3px solid; border-radius: 2px; margin-right: 6px;
  vertical-align: 4px; }
.key.dots::before { content: "- • -"; margin-right: 6px; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
.below { margin-top: 12px; }
.samples td { overflow-wrap: anywhere; }
.samples td:nth-child(2) { width: 54%; }
.question { font-weight: 600; margin: 0 0 4px; }
.context { color: var(--muted); font-size: 13.5px; margin: 0; white-space: pre-line; }
mark { color: inherit; background: var(--good-soft); color: var(--ink); border-radius: 3px; padding: 1px 2px; }
mark.said { background: var(--bad-soft); text-decoration: underline wavy 1px var(--bad); text-underline-offset: 3px; }
.runners { margin: 6px 0 0; padding: 0; list-style: none; color: var(--muted); font-size: 12.5px; }
.runners li { display: flex; justify-content: space-between; gap: 12px; font-variant-numeric: tabular-nums; }
.runners span:last-child { white-space: nowrap; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 12px; }
summary { cursor: pointer; padding: 10px 16px; font-weight: 600; }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo,
  Consolas, "DejaVu Sans Mono", monospace; }
details .scroll { border: 0; border-top: 1px solid var(--line); border-radius: 0 0 10px 10px; }
footer { margin-top: 40px; color: var(--muted); font-size: 13px; }
@media screen and (max-width: 760px) {
  main { padding: 24px 16px 48px; }
  .charts, .charts.two { grid-template-columns: minmax(0, 1fr); }
  figure.wide { overflow-x: auto; }
  figure.wide svg { min-width: 680px; }
  th, td { padding: 8px 12px; }
  .samples td:nth-child(2) { min-width: 300px; }
}
@media print {
  @page { margin: 14mm; }
  body { background: none; font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, .tile, tr, header { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  th, td { padding: 6px 10px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
