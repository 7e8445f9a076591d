"""The report of `compare-mlm` as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.errors import escape_unprintable
from bertjax.evaluation.predictors.masks import MASK
from bertjax.progress.text import decimals

SHOWN = 3  # items of the largest changes each way
CANDIDATES = 5  # of a mask
WIDTH = 110  # characters of a line of an item


def format_text(report: Mapping[str, Any]) -> str:
    """Aggregates, tests, pseudo-perplexities, and the items whose gold word changed most."""
    lines = [f"A: {report['a']['path']}", f"B: {report['b']['path']}", ""]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += _cloze(report["cloze"])
    for name, found in report["texts"].items():
        lines += ["", *_likelihood(name, found)]
    for title, items in (("B better", gains(report)), ("A better", losses(report))):
        if items:
            lines += ["", f"{title}:"]
            for item in items[:SHOWN]:
                lines += _item(item)
    return "\n".join(lines)


def gains(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Masks with a better rank in B, those whose gold word gained the most probability (in nats) first."""
    return sorted((item for item in report["cloze"]["items"] if item["rank_change"] < 0), key=lambda item: -_gain(item))


def losses(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Masks with a better rank in A, those whose gold word lost the most first."""
    return sorted((item for item in report["cloze"]["items"] if item["rank_change"] > 0), key=_gain)


def _gain(item: Mapping[str, Any]) -> float:
    return float(item["b"]["log_probability"] - item["a"]["log_probability"])


def _row(name: str, values: Sequence[str]) -> str:
    return f"{name:<28}" + "".join(f"{value:>12}" for value in values)


def _cloze(found: Mapping[str, Any]) -> list[str]:
    source = found["source"].get("cloze") or ", ".join(found["source"]["text"][:3])
    lines = [
        _row(f"cloze, {found['masks']:,} masks", "AB")
        + f"   {source}, seed {found['significance']['bootstrap']['seed']}"
    ]
    for name, digits in (
        ("mean_reciprocal_rank", 4), ("accuracy@1", 2), ("accuracy@10", 2), ("mean_log_probability", 3)
    ):  # fmt: skip
        lines.append(_row(name.replace("_", " "), [f"{found[side][name]:.{digits}f}" for side in "ab"]))
    return [*lines, *test_lines(found)]


def test_lines(found: Mapping[str, Any]) -> list[str]:
    """Won, lost and tied, and the paired tests of the cloze items, one line each."""
    counts, tests = found["counts"], found["significance"]
    bootstrap = tests["bootstrap"]
    lines = [
        f"rank of the gold word: B better {counts['won']:,}, A better {counts['lost']:,}, equal {counts['tied']:,}; "
        f"sign test p = {tests['sign_test']['p']:.2g}",
        f"McNemar's exact test (accuracy@1, {counts['only_a_first']:,} against {counts['only_b_first']:,}): "
        f"p = {tests['mcnemar']['p']:.2g}",
    ]
    for name in ("log_probability", "reciprocal_rank"):
        lines.append(bootstrap_line(name, bootstrap))
    return lines


def bootstrap_line(name: str, bootstrap: Mapping[str, Any]) -> str:
    """One paired bootstrap."""
    one = bootstrap[name]
    return (
        f"paired bootstrap ({bootstrap['samples']:,} samples), {name.replace('_', ' ')}, "
        f"B - A: {one['difference']:+.4f} (95 % from {one['low']:+.4f} to {one['high']:+.4f}), p = {one['p']:.2g}"
    )


def _likelihood(name: str, found: Mapping[str, Any]) -> list[str]:
    counts = found["counts"]
    left_out = "".join(f"; {number:,} left out: {reason}" for reason, number in found["left_out"].items())
    lines = [
        _row(f"{name} text", "AB") + f"   {found['scored_sentences']:,} of {found['sentences']:,} sentences, "
        f"{found['scored_words']:,} words{left_out}"
    ]
    for key, digits in (("perplexity_per_token", 2), ("perplexity_per_word", 2), ("tokens_per_word", 3)):
        shown = "pseudo-" * key.startswith("perplexity") + key.replace("_", " ")
        lines.append(_row(shown, [decimals(found[side][key], digits) for side in "ab"]))
    if any(found[side]["unknown_tokens"] for side in "ab"):
        lines.append(_row("unknown tokens", [f"{found[side]['unknown_tokens']:,}" for side in "ab"]))
    lines.append(
        f"likelihood of sentences: B better {counts['won']:,}, A better {counts['lost']:,}, equal {counts['tied']:,}"
    )
    lines.append(bootstrap_line("pseudo_log_likelihood", found["bootstrap"]))
    return lines


def _item(item: Mapping[str, Any]) -> list[str]:
    lines = [f"  {escape_unprintable(around_mask(item['text'], item['mask'], WIDTH))}"]
    lines.append(f"    {_line(item['answer'], 40)}: rank {item['a']['rank']:,} -> {item['b']['rank']:,}")
    for side in "ab":
        top = ", ".join(f"{one['token']} ({one['probability']:.2f})" for one in item[side]["top"][:CANDIDATES])
        lines.append(f"    {side.upper()}: {_line(top, WIDTH)}")
    return lines


def _line(text: str, most: int) -> str:
    """The first characters of a text in one line of a terminal."""
    return escape_unprintable(" ".join(text.split())[:most])


def around_mask(text: str, number: int, most: int) -> str:
    """At most `most` characters of a text, on one line, that include its [MASK] `number`; "..." is where it is cut."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    place = len(MASK.join(line.split(MASK)[: number + 1]))
    start = max(0, min(place - most // 2, len(line) - most))
    shown = line[start : start + most]
    if start:
        shown = f"...{shown[3:]}"
    return f"{shown[:-3]}..." if start + most < len(line) else shown
