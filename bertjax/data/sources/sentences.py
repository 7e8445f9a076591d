"""Splits text into sentences by rules: deterministic, no model, tens of megabytes per second.

A wrong split costs BERT's pre-training little, so the rules are few. For Latin, Greek and Cyrillic text they handle
abbreviations, initials, decimals, ellipses, quotes and enumerations; marks of other scripts always end a sentence.
"""

import re
from collections.abc import Iterator
from itertools import islice

VERSION = 0  # added to the version of source kinds whose text is split: raise it when the output changes

# Sentence_Terminal of Unicode 17 (PropList.txt), inclusive ranges, without '.', '!' and '?' (which need rules of their
# own), U+2024 (a one-dot leader) and U+104A (which Burmese writes as a comma).
_SENTENCE_TERMINAL = (
    "589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104B 1362 1367-1368 166E 1735-1736 17D4-17D5 1803 1809 "
    "1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2CF9-2CFB "
    "2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F "
    "AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 "
    "110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C "
    "115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 "
    "11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88"
)
_TIBETAN_SHADS = "F0D-F0E F14"  # end a clause or a sentence, and nothing else does


def _characters(ranges: str) -> str:
    bounds = [[int(end, 16) for end in part.split("-")] for part in ranges.split()]
    return "".join(chr(code) for bound in bounds for code in range(bound[0], bound[-1] + 1))


SENTENCE_TERMINAL = _characters(_SENTENCE_TERMINAL)
SENTENCE_END_MARKS = SENTENCE_TERMINAL + _characters(_TIBETAN_SHADS)  # need no space after them

# Abbreviations that a capital letter follows without a new sentence.
_TITLES = frozenset(
    "mr mrs ms messrs mme mmes mlle dr drs prof rev revd fr sr st ste hon gen maj col lt capt cpt cmdr sgt cpl adm "
    "brig gov pres sen rep amb supt insp pvt mt ft vs viz cf eg ie op ed eds trans fig figs eq eqs sec ch chap vol "
    "vols pt approx repr univ dept assn e.g i.e a.k.a esq".split()
)
# Abbreviations that can close a sentence: they do when a word that often opens one follows.
_CLOSERS = frozenset(
    "etc al inc co corp ltd bros jr sq dep est jan feb mar apr jun jul aug sept oct nov dec a.m p.m b.c a.d b.c.e c.e "
    "ph.d m.d".split()
)
_OPENERS = frozenset(
    "the a an this that these those it its he she they we you i his her their our my in on at by for from with after "
    "before when while although though as if since because but and or so then there here however what who where why "
    "how to both all some many most several one no not during despite today according another each such under until "
    "every yet once nor perhaps soon later meanwhile also thus therefore".split()
)
# Abbreviations that a number follows: "No. 6", "d. 741", "Nov. 5".
_NUMBERED = frozenset(
    "no nos fig figs eq vol vols ch chap sec art pt pp p op mt c ca cca d b r fl jan feb mar apr jun jul aug sept oct "
    "nov dec vv v ll".split()
)

_QUOTES, _BRACKETS = "\"'\u201d\u2019\u00bb", ")\\]"
# A terminator with closing quotes or brackets, then space, then what may open a sentence. Tokenised text has spaces
# everywhere: 'he left . " stop ! " mr . smith said'. Tried only at the first mark of a run, and with few footnotes
# ([1][2]), so that runs of dots take linear time.
_LATIN = (
    rf"(?<![.!?\u2026])(?P<end>[.!?\u2026]++)(?P<close>[{_QUOTES}{_BRACKETS}*_]*(?:\[[^\]]{{1,40}}\]){{0,40}})"
    r"(?P<space>\s+)"
    r"(?=(?P<open>[\"'\u201c\u2018\u00ab(\[\u00bf\u00a1_*\u2014\u2013\s-]*)(?P<next>[^\W_]))"
)
_GREEK, _ARMENIAN = "\u0370-\u03ff\u1f00-\u1fff", "\u0561-\u0587"  # whose keyboards may lack the marks of their own
_OTHER = (
    rf"[{SENTENCE_END_MARKS}]+|(?<=[{_ARMENIAN}]):(?=\s+[\u0531-\u0587])|(?<=[{_GREEK}]);(?=\s+[{_GREEK}])|\u1361\u1361"
)
_BOUNDARY = re.compile(_LATIN)
_ANY_BOUNDARY = re.compile(
    rf"{_LATIN}|(?:{_OTHER})(?:\s?\d{{1,4}}\s?\u0965)?"  # verse numbers have a danda on both sides
    rf"(?P<after>[{_QUOTES}{_BRACKETS}\u300d\u300f\u300b\u3011\uff09\uff3d]*)(?=\s*(?P<then>\S))"
)
_CANDIDATE = re.compile(rf"[.!?\u2026:;\u1361{SENTENCE_END_MARKS}]")
_NOT_ASCII = re.compile("[^\x00-\x7f]+")
_NEEDS_ANY = frozenset(SENTENCE_END_MARKS + "\u1361" + "".join(map(chr, [*range(0x370, 0x400), *range(0x561, 0x588)])))
_CLOSE = re.compile(r"(?:[\")\]] )+")  # of tokenised text, after the terminator and its space
_LOWER = re.compile(rf"[.!?][{_QUOTES}{_BRACKETS}]*\s+[\"'\u201c\u2018\u00ab(\[]*([^\W\d_])")
_UPPER = re.compile("[A-Z\u00c0-\u00d6\u00d8-\u00de\u0391-\u03a9\u0400-\u042f\u0531-\u0556]")
_SAMPLE = 1 << 14  # characters by which a text is taken to be written with capitals or without
_NO_MARKS = 1000  # a stretch of several lines that is longer, without any mark, has a sentence on each line
_WORD_BEFORE = re.compile(r"[^\s(\[\"\u201c\u2018\u2014/]*\Z")
_WORD_AFTER = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_ENUMERATOR = re.compile(r"\W*(?:\d{1,3}|[ivxlcIVXLC]{1,6}|[a-zA-Z])\Z")
_MARKER = re.compile(r"\s*(?:#{1,6}|[-*\u2022+])\s+")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S  J.R.R
_MARK = re.compile(rf"[.!?{SENTENCE_END_MARKS}]")
_HEADING = re.compile(r"\s*#{1,6}\s+\S")


def split_sentences(text: str, lower: bool | None = None) -> list[str]:
    """Sentences in order, white space collapsed. Blank lines, headings (`# `) and list items (`- `) end a sentence.

    Heading and list markers are dropped, no other visible character is.
    `lower`: whether sentences may begin with a small letter; None finds out from the start of the text.
    """
    if lower is None:
        lower = lacks_capitals(text)
    other = not text.isascii() and not _NEEDS_ANY.isdisjoint("".join(_NOT_ASCII.findall(text)))
    boundaries = _any_boundaries if other else _BOUNDARY.finditer
    return [sentence for block in _blocks(text) for sentence in _split_block(block, boundaries(block), lower)]


def lacks_capitals(text: str) -> bool:
    """Whether sentences may start with a small letter: small starts outnumber all capitals (names have them too), in
    the first _SAMPLE characters."""
    text = text[:_SAMPLE]
    small = sum(match[1].islower() for match in _LOWER.finditer(text))
    if not small:
        return False
    capitals = _UPPER.finditer(text)
    return sum(1 for _ in islice(capitals, 2 * small - 1)) < 2 * small - 1


def _blocks(text: str) -> list[str]:
    """Stretches of text that a sentence cannot cross, each on one line."""
    blocks: list[str] = []
    lines: list[str] = []

    def close() -> None:
        if len(lines) > 1 and sum(map(len, lines)) > _NO_MARKS and not any(map(_MARK.search, lines)):
            blocks.extend(" ".join(line.split()) for line in lines)
        elif lines:
            blocks.append(" ".join(" ".join(lines).split()))
        lines.clear()

    for line in text.split("\n"):
        if not line.strip():
            close()
        elif _MARKER.match(line):
            close()
            lines.append(_MARKER.sub("", line, count=1))
            if _HEADING.match(line):
                close()
        else:
            lines.append(line)
    close()
    return [block for block in blocks if block]


def _any_boundaries(block: str) -> Iterator[re.Match[str]]:
    """As `finditer` of _ANY_BOUNDARY, five times as fast: its alternatives are tried at few places."""
    end = 0
    for candidate in _CANDIDATE.finditer(block):
        if candidate.start() >= end and (match := _ANY_BOUNDARY.match(block, candidate.start())):
            end = match.end()
            yield match


def _split_block(block: str, boundaries: Iterator[re.Match[str]], lower: bool) -> list[str]:
    sentences: list[str] = []
    start = 0
    for match in boundaries:
        if match["space"] is None:  # a mark of another script
            if not _mark_ends(match):
                continue
            cut = match.end()
        elif _ends_sentence(block, start, match, lower):
            cut = _with_closing(block, start, match)
        else:
            continue
        sentences.append(block[start:cut].strip())
        start = cut
    sentences.append(block[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _mark_ends(match: re.Match[str]) -> bool:
    if match["after"] and match["then"] in "\u3068,\u3001\uff0c":
        return False  # a quotation inside a sentence: Japanese goes on with to, Chinese with a comma
    return not (match[0] == "\uff0e" and match["then"].isdigit())  # a decimal in full-width digits


def _with_closing(block: str, start: int, match: re.Match[str]) -> int:
    """The end of the sentence, after closing quotes and brackets that spaces separate from the terminator."""
    found = _CLOSE.match(block, match.end())
    if found is None or ('"' in found[0] and block.count('"', start, match.end()) % 2 == 0):
        return match.end()
    return found.end()


def _ends_sentence(block: str, start: int, match: re.Match[str], lower: bool) -> bool:
    if match["next"].islower() and not lower:
        return False
    if " " in match["open"] and block[match.start() - 1 : match.start()] != " ":
        return False  # only tokenized text has spaces after an opening quote
    if match["end"] != ".":
        return True  # "What?", "Stop!" and "And then..." end a sentence before a capital
    if match.start() - start < 8 and not match["close"] and _ENUMERATOR.match(block[start : match.start()].rstrip()):
        return False  # "1. The first" and "IV. The fourth" open a sentence; nothing has been said yet
    return not _is_abbreviation(block, start, match, lower)


def _is_abbreviation(block: str, start: int, match: re.Match[str], lower: bool) -> bool:
    stop = match.start()
    spaced = stop > start and block[stop - 1] == " "
    stop -= spaced
    found = _WORD_BEFORE.search(block, max(start, stop - 24), stop)
    before = found.group() if found else ""
    word = before.lower().lstrip("'\u2019")
    after = _WORD_AFTER.search(block, match.end("space"))
    opener = after is not None and after.group().lower() in _OPENERS and (lower or after.group()[0].isupper())
    if match["next"].isdigit():
        return word in _NUMBERED or (spaced and word.isdigit())  # "3 . 5"
    if match["close"]:
        return word in _TITLES and not opener
    if word in _TITLES:
        return True
    if len(before) == 1 and before.isalpha() and (lower or before.isupper()):
        return not opener or (after is not None and len(after.group()) == 1)  # "J. A. Hort", but "vitamin C. The"
    if word in _CLOSERS or _DOTTED.fullmatch(word):
        return not opener
    return False
