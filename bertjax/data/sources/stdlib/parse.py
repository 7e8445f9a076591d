"""Parses the Python standard library with `ast`: an `Entry` of English sentences for each documented name."""

import ast
import dataclasses
import functools
import inspect
import os
import re
import sysconfig
from pathlib import Path

from bertjax.data.sources.sentences import split_sentences

SKIPPED = frozenset(
    "test tests idlelib lib2to3 turtledemo distutils ensurepip encodings pydoc_data site-packages dist-packages "
    "__pycache__ __phello__ lib-dynload".split()
)
_VERBS = frozenset(
    "abort accept acquire activate add adjust advance allow analyze append apply arrange ask assert attach attempt "
    "bind block break browse build bypass calculate call cancel capture cast change check choose clean cleanup clear "
    "clone close collapse collect combine compare compile complete compress compute concatenate configure connect "
    "consume construct continue convert copy count create decode decompress decrement define delegate delete deliver "
    "deregister describe deselect destroy detach detect determine dequeue disable disassemble discard disconnect "
    "discover dispatch display divide download draw drop dump duplicate emit empty enable encode encrypt enqueue "
    "ensure enter enumerate erase escape establish evaluate examine execute exit expand expose extend extract fail "
    "feed fetch fill filter finalize find finish fire fix flatten flush fold follow force forget fork format forward "
    "free freeze gather generate get give grab guess handle hash hide identify ignore implement import include "
    "increase increment indent indicate inform inherit initialise initialize insert inspect install instantiate "
    "instruct interpret interrupt invalidate invert invoke issue iterate join keep kill launch leave let limit link "
    "list listen load locate lock log look lookup lower make manage map mark match measure merge modify monitor mount "
    "move multiply negate normalize notify obtain offer open order output override pack parse pass patch pause peek "
    "perform place play poll pop populate post prepare prevent print probe process produce propagate provide publish "
    "pull push put query queue quote raise read rebuild receive recompute reconstruct record redirect reduce refresh "
    "register reject release reload remember remove rename render repeat replace report represent request require "
    "reset resize resolve restore resume retrieve return reverse rewind rewrite rotate round run save scan schedule "
    "scroll search seek select send separate serialize serve set shift show shrink shuffle shut shutdown signal "
    "simulate skip sleep slice sort spawn specify split squeeze start stop store strip submit subtract suggest "
    "support suspend swap switch synchronize take tell terminate test toggle track transfer transform translate "
    "traverse trigger truncate try turn uncompress undo unlink unload unlock unmap unpack unquote unregister unset "
    "unwrap update upload use validate verify visit wait wake walk warn withdraw wrap write yield".split()
)
# A further verb of a description: "open the file and read the header"
_FURTHER_VERB = re.compile(
    r"(\band |\bor |, |\bthen )(?:(return|raise)\b(?! code| value| type| status| address)"
    r"|([a-z]+)(?= (?:an?|the|it|its|them|all|any|each|this|that|to|self|input|nothing)\b))"
)
_MARKUP = [
    (re.compile(r":\w+:`~?([^`]*)`"), r"\1"),
    (re.compile(r"``([^`]*)``|`([^`']*)[`']"), r"\1\2"),
    (re.compile(r"(?<!\w)\*{1,2}(\w[\w ]*)\*{1,2}(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w.])self\."), ""),
    (re.compile(r"\((?:see|See) [^)]*\)"), ""),
]
_FUNCTION_WORDS = frozenset(
    "the a an of to is are in for and or if it this that be by with as on from not any all no its".split()
)
_LEAD_END = re.compile(r"\s*[,;:(]| -|\. ")
_CODE = re.compile(r">>>|XXX|::=|->|==|\\|[{}<>|~^$%@]|\w=|=\w|\(\)\.|__|\w\[|\.\.\.| = |\S{28}|\bdef \w")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One documented name. `lead` is a predicate in the third person without its full stop ("returns the length")."""

    name: str
    kind: str  # function | method | property | class | constant
    owner: str = ""  # the class of a method or property
    lead: str = ""
    prose: tuple[str, ...] = ()  # the rest of the description, cleaned sentences
    defaults: tuple[tuple[str, str], ...] = ()  # (argument, literal)
    raises: str = ""  # the only exception class its body raises
    base: str = ""  # a class's only base class

    @property
    def subject(self) -> str:
        return f"the {self.kind} {self.name}" + (f" of {self.owner}" if self.owner else "")

    def opening(self) -> str:
        return f"The{self.subject[3:]} {self.lead}."

    def short_lead(self) -> str:
        """The predicate up to its first comma or bracket."""
        return _LEAD_END.split(self.lead, maxsplit=1)[0]

    def facts(self) -> list[str]:
        """Describe the signature and the body in sentences."""
        found = [f"The class {self.name} is a subclass of {self.base}."] if self.base else []
        found += [f"The argument {argument} of {self.name} is {value} by default." for argument, value in self.defaults]
        return found + ([f"The {self.kind} {self.name} can raise {self.raises}."] if self.raises else [])


def stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def source_files(root: Path) -> list[tuple[str, Path]]:
    """(dotted module name, file) of every module worth reading, sorted by name."""
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]  # site-packages may be large
        for name in names:
            path = Path(parent, name)
            parts = path.relative_to(root).with_suffix("").parts
            if name.endswith(".py") and parts[-1] not in SKIPPED and not name.startswith(("test_", "_sysconfigdata")):
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path))
    return sorted(found)


def parse(path: Path) -> ast.Module | None:
    """The file's syntax tree; None for the few files that are broken on purpose."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def extract_prose(text: str) -> list[str]:
    """The English sentences of a docstring or topic: no signatures, doctests, tables, grammar or code."""
    return [sentence for sentence in _sentences(text) if is_prose(sentence)]


def _sentences(docstring: str) -> list[str]:
    # paragraphs up to their first doctest prompt
    blocks = [block.split(">>>")[0] for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring))]
    text = "\n\n".join("\n".join(line for line in block.split("\n") if _keep_line(line)) for block in blocks)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return [_finish(sentence) for sentence in split_sentences(text, lower=False)]


def _keep_line(line: str) -> bool:
    bare = line.strip()
    if not any(c.isalpha() for c in bare) or "->" in bare or "::=" in bare:
        return False
    signature_or_label = re.fullmatch(r"[\w.]+\([^)]*\)[:.]?|[A-Z]\w+( \w+)?:", bare)
    return not (signature_or_label or bare.startswith((":", "@", "$")) or "   " in bare)


def _finish(sentence: str) -> str:
    sentence = re.sub(r"\s+([,.;:)])", r"\1", sentence).strip(" -*")
    return sentence[:-1] + "." if sentence.endswith(":") else sentence


def is_prose(sentence: str, least: int = 4) -> bool:
    """Whether it reads as a sentence of English rather than as code, a table row or under `least` words."""
    words = sentence.split()
    if not least <= len(words) <= 60 or _CODE.search(sentence) or sentence[-1] not in ".!?":
        return False
    if re.match(r"\w+: |\w+ -- |[^\w\"'(]", sentence) or sentence.count("(") != sentence.count(")"):
        return False
    plain = sum(word.strip(".,;:()'\"!?-").replace("-", "").replace("'", "").isalpha() for word in words)
    return plain >= 0.7 * len(words) and not _FUNCTION_WORDS.isdisjoint(word.lower() for word in words)


def third_person(verb: str) -> str:
    """'copy' -> 'copies', 'process' -> 'processes', 'return' -> 'returns'."""
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(s|sh|ch|x|z|o)$", verb) else "s")


_ALSO_NOUNS = frozenset("test process support output handle raise".split())  # "Support for flags"
THIRD_PERSON = {third_person(verb): verb for verb in _VERBS}


def predicate(sentence: str, kind: str) -> str:
    """The first sentence of a description as a predicate about its name; "" where no rule makes good English of it."""
    text = sentence.rstrip(".").strip()
    if text[-1:] in "!?:" or text[:1].islower():
        return ""
    if kind == "class":
        return _class_predicate(text)
    words = text.split(" ")
    at = 1 if words[0].endswith("ly") and len(words) > 1 else 0
    verb = words[at].lower()
    words[:at] = [word.lower() for word in words[:at]]
    if verb in THIRD_PERSON:
        words[at] = verb
        return " ".join(words)
    if words[0] in ("True", "False"):
        return "returns " + text if re.match(r"(True|False) (if|when)\b", text) else ""
    if verb not in _VERBS:
        return ""
    words[at] = third_person(verb)
    if len(words) > at + 2 and words[at + 1] in ("and", "or") and words[at + 2] in _VERBS:
        words[at + 2] = third_person(words[at + 2])
    return _agree(" ".join(words))


def _agree(text: str) -> str:
    """The verbs after the first one in the third person too, except behind "to" ("used to find and load the")."""

    def agree(match: re.Match[str]) -> str:
        verb = match[2] or match[3]
        infinitives = re.findall(r" to (\w+)", text[: match.start()])
        changes = verb in _VERBS and _VERBS.isdisjoint(infinitives)
        return match[1] + (third_person(verb) if changes else verb)

    return _FURTHER_VERB.sub(agree, text)


def _class_predicate(text: str) -> str:
    lowered = text[0].lower() + text[1:]
    if len(text.split()) > 2 and text.split()[2] in THIRD_PERSON:
        return ""  # "An SSLContext holds ..." is a sentence of its own
    if re.match(r"(An?|The) \w", text) and not re.match(r"(\w+ ){2,4}(is|are|has|can|may|will|must|should)\b", text):
        return "is " + lowered
    if re.match(r"(Base|Abstract base|Mixin|Helper|Wrapper|Simple|Generic|Utility|Dummy)( \w+)? class\b", text):
        return ("is an " if lowered[0] in "aeiou" else "is a ") + lowered
    if re.match(r"(Exception|Error) (raised|thrown|used|for|that|which)\b", text):
        return "is an " + lowered
    if re.match(r"Raised (when|if|by|on|for)\b", text):
        return "is " + lowered
    verb = text.split(" ")[0].lower()
    if verb in THIRD_PERSON:
        return lowered
    return third_person(verb) + text[len(verb) :] if verb in _VERBS - _ALSO_NOUNS else ""


def module_entries(tree: ast.Module) -> list[Entry]:
    """The documented names of a module, in the order of the source."""
    found: list[Entry] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(_function(node, "function", ""))
        elif isinstance(node, ast.ClassDef):
            found.append(_class(node))
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    names = {getattr(d, "id", getattr(d, "attr", "")) for d in member.decorator_list}
                    if "setter" not in names and "deleter" not in names:
                        kind = "property" if "property" in names or "cached_property" in names else "method"
                        found.append(_function(member, kind, node.name))
        elif isinstance(node, ast.Assign):
            found.extend(_constant(node))
    return [entry for entry in found if entry.lead or entry.prose]


def _describe(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, kind: str) -> tuple[str, tuple[str, ...]]:
    # a first paragraph often lacks its full stop
    docstring = re.sub(r"([\w)'\"`])\s*(\n\s*\n|\Z)", r"\1.\2", ast.get_docstring(node) or "", count=1)
    sentences = _sentences(docstring)
    lead = predicate(sentences[0], kind) if sentences and is_prose(sentences[0], least=3) else ""
    return lead, tuple(_with_subject(sentence) for sentence in sentences[bool(lead) :] if is_prose(sentence))


def _with_subject(sentence: str) -> str:
    """'Return the offset.' -> 'It returns the offset.'"""
    found = re.match(r"(Return|Raise)s? (?=\w)", sentence)
    return f"It {found[1].lower()}s {sentence[found.end() :]}" if found else sentence


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str, owner: str) -> Entry:
    lead, rest = _describe(node, kind)
    if re.fullmatch(r"__\w+__", node.name):
        lead = ""  # every class has one: no name to ask for
    if not lead:
        return Entry(node.name, kind, owner, lead, rest)
    positional = [*node.args.posonlyargs, *node.args.args]
    arguments = positional[len(positional) - len(node.args.defaults) :]
    pairs: list[tuple[ast.arg, ast.expr | None]] = list(zip(arguments, node.args.defaults, strict=True))
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    defaults = tuple((a.arg, text) for a, value in pairs if len(a.arg) > 2 and (text := _literal(value)))
    thrown = {_exception(item) for item in ast.walk(node) if isinstance(item, ast.Raise)}
    raises = thrown.pop() if len(thrown) == 1 else ""
    return Entry(node.name, kind, owner, lead, rest, defaults[:2], raises)


def _class(node: ast.ClassDef) -> Entry:
    lead, rest = _describe(node, "class")
    base = node.bases[0] if len(node.bases) == 1 else None
    name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
    return Entry(node.name, "class", "", lead, rest, base="" if name == "object" or not lead else name)


def _constant(node: ast.Assign) -> list[Entry]:
    target, value = node.targets[0], _literal(node.value)
    if len(node.targets) > 1 or not isinstance(target, ast.Name) or not re.fullmatch(r"[A-Z][A-Z0-9_]{3,}", target.id):
        return []
    worth_saying = value and value.strip("'").lower() != target.id.lower()
    return [Entry(target.id, "constant", lead=f"has the value {value}")] if worth_saying else []


def _literal(node: ast.expr | None) -> str:
    """A number, True, False or a plain quoted word, as a reader would write it; "" for anything else (and for None)."""
    if not isinstance(node, ast.Constant) or node.value is ...:
        return ""
    if isinstance(node.value, str):
        return f"'{node.value}'" if re.fullmatch(r"[A-Za-z][\w-]{1,15}", node.value) else ""
    return repr(node.value) if isinstance(node.value, int | float) and len(repr(node.value)) < 8 else ""


def _exception(node: ast.Raise) -> str:
    raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    name = raised.id if isinstance(raised, ast.Name) and raised.id[:1].isupper() else ""
    return "" if name == "NotImplementedError" else name  # says only that a subclass does the work
