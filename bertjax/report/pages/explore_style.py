"""The style and the script of the page of `bertjax explore`: pictures of words, and an attention map enlarged."""

STYLE = """
.pictures { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; }
.words svg { display: block; width: 100%; height: auto; overflow: visible; }
.words text { font-size: 15px; fill: var(--ink); opacity: 0.72; paint-order: stroke; stroke: var(--card);
  stroke-width: 3px; stroke-linejoin: round; pointer-events: none; }
.words circle.hit { fill: transparent; }
.words g:hover text, .words g:focus text { opacity: 1; font-size: 22px; font-weight: 700; }
.words g:hover circle.dot, .words g:focus circle.dot { stroke: var(--ink); stroke-width: 2px; }
.words g:focus { outline: none; }
.words .key i { border-top-width: 9px; width: 9px; border-radius: 50%; vertical-align: 0; }
.near th, .near td { padding-top: 4px; padding-bottom: 4px; }
.near span { display: inline-block; margin-right: 14px; white-space: nowrap; }
.near span i { color: var(--muted); font-style: normal; font-size: 12px; font-variant-numeric: tabular-nums; }
.attention { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 2px 16px 16px;
  margin-top: 16px; }
.attention h3 { margin: 12px 0; }
.both { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 12px 24px; align-items: start; }
.grid-of-maps { overflow-x: auto; max-width: 860px; padding: 2px; }
.grid-of-maps div { display: grid; gap: 3px; margin-bottom: 3px; align-items: center;
  grid-template-columns: 20px repeat(var(--heads), minmax(22px, 1fr)); }
.grid-of-maps span { color: var(--muted); font-size: 11.5px; text-align: center; font-variant-numeric: tabular-nums; }
.grid-of-maps button { padding: 0; border: 1px solid var(--line); border-radius: 3px; background: none; display: block;
  cursor: pointer; color: inherit; }
.grid-of-maps button[aria-pressed="true"] { outline: 2px solid var(--ink); outline-offset: 0; }
.grid-of-maps svg { display: block; width: 100%; height: auto; aspect-ratio: 1; fill: var(--accent);
  shape-rendering: crispEdges; }
.enlarged { position: sticky; top: 8px; }
.enlarged p { min-height: 22px; margin-bottom: 6px; overflow-wrap: anywhere; }
.sheet { overflow-x: auto; }
.sheet svg { display: block; width: 100%; height: auto; }
.sheet rect { fill: var(--accent); }
.sheet rect.cell { stroke: var(--line); stroke-width: 0.5; }
.sheet rect.frame { fill: none; stroke: var(--line); }
.sheet text { fill: var(--ink); }
@media screen and (max-width: 860px) { .both { grid-template-columns: minmax(0, 1fr); } }
@media screen and (max-width: 620px) {
  .words circle.dot { r: 11px; }
  .words circle.hit { r: 34px; }
  .words text { opacity: 0; font-size: 34px; }
  .words g:hover text, .words g:focus text { font-size: 40px; }
  .attention { padding: 2px 8px 10px; }
  .grid-of-maps div { gap: 2px; margin-bottom: 2px;
    grid-template-columns: 15px repeat(var(--heads), minmax(20px, 1fr)); }
}
@media print { .words text { opacity: 1; } }
"""

SCRIPT = r"""
(() => {
  const svgElement = (tag, attributes, text) => {
    const made = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const space = document.querySelector(".attention svg")?.namespaceURI;
  for (const box of document.querySelectorAll(".attention")) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const tokens = data.tokens, size = tokens.length;
    const panel = box.querySelector(".enlarged"), sheet = box.querySelector(".sheet");
    const title = panel.querySelector("b"), status = panel.querySelector("span");
    const buttons = [...box.querySelectorAll("button")];
    const value = (map, query, key) => (data.values.charCodeAt((map * size + query) * size + key) - 35) / 90;
    const short = (token) => token.length > 12 ? token.slice(0, 11) + "…" : token;
    const say = (map, query, key) => {
      const share = value(map, query, key);
      const shown = share ? Math.round(100 * share) : "under 1";
      status.textContent = tokens[query] + " reads " + tokens[key] + ": " + shown + " %";
    };
    const enlarge = (map) => {
      const layer = Math.floor(map / data.heads) + 1, head = map % data.heads + 1;
      const cell = 26, label = 14 + 8.2 * Math.max(...tokens.map((token) => short(token).length));
      const side = label + size * cell;
      const drawing = svgElement("svg", { viewBox: "0 0 " + (side + 4) + " " + (side + 4), "font-size": 14 });
      drawing.style.maxWidth = 1.25 * side + "px";
      drawing.style.minWidth = Math.min(0.8 * side, 1000) + "px";
      for (let i = 0; i < size; i++) {
        const middle = label + (i + 0.5) * cell;
        drawing.append(svgElement("text", { x: label - 6, y: middle + 5, "text-anchor": "end" }, short(tokens[i])));
        drawing.append(svgElement("text", { x: 0, y: 0, transform:
          "translate(" + (middle + 5) + " " + (label - 6) + ") rotate(-90)" }, short(tokens[i])));
      }
      for (let query = 0; query < size; query++)
        for (let key = 0; key < size; key++)
          drawing.append(svgElement("rect", { class: "cell", x: label + key * cell, y: label + query * cell,
            width: cell, height: cell, "fill-opacity": Math.sqrt(value(map, query, key)) }));
      drawing.append(svgElement("rect", { class: "frame", x: label, y: label, width: size * cell,
        height: size * cell }));
      const follow = (event) => {
        const frame = drawing.getBoundingClientRect(), scale = (side + 4) / frame.width;
        const key = Math.floor(((event.clientX - frame.left) * scale - label) / cell);
        const query = Math.floor(((event.clientY - frame.top) * scale - label) / cell);
        if (key >= 0 && query >= 0 && key < size && query < size) say(map, query, key);
      };
      drawing.addEventListener("pointermove", follow);
      drawing.addEventListener("pointerdown", follow);
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", "Attention of layer " + layer + ", head " + head);
      title.textContent = "Layer " + layer + ", head " + head;
      status.textContent = "";
      sheet.replaceChildren(drawing);
      panel.hidden = false;
      buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === map)));
    };
    let chosen = 0;
    buttons.forEach((button, map) => {
      button.addEventListener("click", () => {
        chosen = map;
        enlarge(map);
        panel.scrollIntoView({ block: "nearest" });
      });
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") enlarge(map); });
    });
    box.querySelector(".grid-of-maps").addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") enlarge(chosen);
    });
    if (buttons.length) enlarge(0);
  }
})();
"""
