"""The report of `explore` as plain text."""

from collections.abc import Mapping
from typing import Any

from bertjax.errors import escape_unprintable

SHOWN = 5  # neighbors of a word


def format_text(report: Mapping[str, Any]) -> str:
    """The neighbors of the first word of each group, the analogies, and what the page has more of."""
    lines = [f"{report['path']}: {report['family']}, {report['vocabulary']:,} pieces, {report['words']:,} words"]
    lines += [f"note: {note}" for note in report["notes"]]
    for name in ("static", "contextual"):
        if report[name] is not None:
            lines += ["", *_neighbors(name, report[name], report["groups"])]
    lines += ["", *_analogies(report["analogies"])]
    if report["attention"]:
        maps = report["attention"][0]["maps"]
        lines += ["", f"attention: {len(maps)} layers of {len(maps[0])} heads"]
    return "\n".join(map(escape_unprintable, lines))


def _neighbors(name: str, space: Mapping[str, Any], groups: Mapping[str, Any]) -> list[str]:
    kind = "input vectors" if name == "static" else f"contextual vectors, layer {space['layer']}"
    lines = [f"nearest words, {kind} ({space['words']:,} words)"]
    near = {one["word"]: one["neighbors"] for one in space["nearest"]}
    for words in groups.values():  # one word of each, to be short
        word = next((word for word in words if word in near), None)
        if word is not None:
            listed = ", ".join(f"{one['word']} {one['cosine']:.2f}" for one in near[word][:SHOWN])
            lines.append(f"  {word:<12} {listed}")
    if (others := len(near) - len(lines) + 1) > 0:
        lines.append(f"  ... {others:,} more on the page")
    if space["unknown"]:
        lines.append(f"  unknown: {', '.join(space['unknown'])}")
    return lines


def _analogies(found: Mapping[str, Any]) -> list[str]:
    lines = [f"analogies ({found['source']})"]
    for section in (*found["sections"], {"section": "all"} | found["total"]):
        accuracy = "-" if section["accuracy"] is None else f"{section['accuracy']:.1f} %"
        unknown = f", {section['unknown']:,} with unknown words" if section["unknown"] else ""
        lines.append(
            f"  {section['section']:<28} {accuracy:>8}  {section['correct']:,} of {section['answered']:,}{unknown}"
        )
    return lines
