"""Loads tokenizers of Hugging Face folders through transformers, which only this module imports, without network.

No code of the folder is run.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.processors

from bertjax.config.huggingface.fields import families_by_type
from bertjax.config.schema.data import BpeConfig, BytesConfig, SentencePieceConfig, WordPieceConfig
from bertjax.config.schema.model import FAMILIES
from bertjax.data.tokenizers import backend_state
from bertjax.data.tokenizers.files import ADDED, CONFIG, JSON, ROLES, SPECIAL, SpecialTokens, json_object
from bertjax.data.tokenizers.row_layout import RowLayout, find_layout
from bertjax.errors import UserError, escape_unprintable, is_panic
from bertjax.progress import reporter

SETTINGS_FILES = ("config.json", CONFIG, SPECIAL, ADDED)
_MODELS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_BPE = ("vocab.json", "merges.txt")
VOCAB_FILES = (JSON, "vocab.txt", *_BPE, *_MODELS)
NAMED_BY_CLASS = (*_BPE, "sentencepiece.bpe.model")  # files that mean nothing without a tokenizer class
_TYPES = {"vocab.txt": "bert", "spiece.model": "t5"}  # transformers' tokenizer_type where nothing names a class
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that are nothing without a tokenizer.json
_UNKNOWN = "\U00013000"  # a letter that hardly any vocabulary holds
NO_VOCAB_FILE = "{}: the folder holds neither tokenizer.json nor vocab.txt nor spiece.model; name a file"
_noted: set[str] = set()


def needs_transformers(path: Path) -> bool:
    """Whether settings say how transformers reads the vocabulary in `path`, a file or a folder."""
    folder = path if path.is_dir() else path.parent
    if any((folder / name).is_file() for name in (SPECIAL, ADDED)):
        return True
    declared = json_object(folder / CONFIG)
    if declared and not (declared.keys() <= {"extra_ids"} and not (folder / JSON).is_file()):
        return True
    try:
        return bool(_class_named(folder))
    except UserError:
        if path.is_dir():
            raise
        return False  # a config.json that does not belong to the file


def _class_named(folder: Path) -> str | None:
    """The tokenizer class or the model type that the folder's settings name."""
    config, declared = json_object(folder / "config.json"), json_object(folder / CONFIG)
    names = (declared.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type"))
    return next((name for name in names if isinstance(name, str) and name), None)


def load(path: Path, options: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    """The tokenizer that transformers' AutoTokenizer makes of a folder, or of one vocabulary file and its settings.

    `options`: keyword arguments of the class, for what the settings leave open. Raises UserError.
    """
    folder = path if path.is_dir() else path.parent
    _reject_custom_code(folder)
    present = [name for name in VOCAB_FILES if (folder / name).is_file()]
    if path.is_dir() and not present:
        raise UserError(NO_VOCAB_FILE.format(path))
    with tempfile.TemporaryDirectory(prefix="bertjax-tokenizer-") as scratch:
        at = folder if path.is_dir() else _isolated_folder(path, Path(scratch))
        found = _from_pretrained(path, at, options)
        _reject_placeholder_vocab(found, path, at)
        backend = _backend(found, path)
        family = json_object(folder / "config.json").get("model_type")
        known = families_by_type()
        wanted = FAMILIES[known[family]].tokenizer if family in known else None
        special = _special_tokens(found, backend, {"cls", "sep"} if wanted == "sentencepiece" else set())
        if wanted == "wordpiece" and special.is_t5:
            missing = next(role for role in ("cls", "sep") if role not in special.roles)
            need = f"{missing}_token, which a {family} needs"
            raise UserError(f"{path}: the tokenizer has no {need}; name it in {CONFIG}")
        if special.is_t5 and "eos" not in special.roles:
            raise UserError(
                f"{path}: transformers finds neither pad_token, cls_token and sep_token, which BERT's rows need, nor "
                f"pad_token and eos_token, which T5's need; name them in {CONFIG}"
            )
        for note in _notes(at, type(found).__name__, backend, special):
            note_once(path, note)
    _set_template(backend, special)
    return backend, special


def _isolated_folder(path: Path, scratch: Path) -> Path:
    """A folder with one vocabulary file under the name that transformers looks for, and its settings."""
    name = {".model": "spiece.model", ".json": JSON}.get(path.suffix, "vocab.txt")
    shutil.copyfile(path, scratch / (path.name if path.name in VOCAB_FILES else name))
    if path.name in _BPE and all((path.parent / each).is_file() for each in _BPE):
        for each in _BPE:  # one tokenizer in two files
            shutil.copyfile(path.parent / each, scratch / each)
    for setting in SETTINGS_FILES:
        if (path.parent / setting).is_file():
            shutil.copyfile(path.parent / setting, scratch / setting)
    return scratch


def _reject_custom_code(folder: Path) -> None:
    for name in ("config.json", CONFIG):
        if json_object(folder / name).get("auto_map"):
            raise UserError(
                f"{folder / name}: auto_map: the tokenizer is defined by code of its own, which is never run here; "
                "load it where it is trusted and save only its tokenizer.json"
            )


def _from_pretrained(path: Path, at: Path, options: Mapping[str, Any]) -> Any:
    declared = json_object(at / CONFIG)
    keywords = {name: value for name, value in options.items() if name not in declared}
    present = next((name for name in _TYPES if (at / name).is_file()), None)
    if present and not (at / JSON).is_file() and _class_named(at) in (None, *_GENERIC):
        keywords["tokenizer_type"] = _TYPES[present]
    try:
        with _quiet():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(
                str(at), use_fast=True, local_files_only=True, trust_remote_code=False, **keywords
            )
    except ImportError as error:
        raise UserError(f"{path}: its settings are read by transformers, which does not load: {error}") from None
    except BaseException as error:  # noqa: BLE001  (transformers raises many kinds; a panic in Rust is no Exception)
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:160].replace(str(at), str(path))
        raise UserError(
            f"{path}: transformers cannot load this tokenizer ({type(error).__name__}: {reason}); "
            "load and save it with AutoTokenizer where it was made"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines and warnings of transformers."""
    kept = {name: os.environ.get(name) for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS")}
    os.environ.update(TRANSFORMERS_VERBOSITY="critical", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    try:
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.set_verbosity(before)
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _reject_placeholder_vocab(found: Any, path: Path, at: Path) -> None:
    """Raise UserError without vocabulary files: transformers 5 would create a tokenizer of special tokens."""
    names = dict.fromkeys([*found.vocab_files_names.values(), JSON])
    read = getattr(found, "vocab_file", None)
    if not any((at / name).is_file() for name in names) and not (read and Path(read).is_file()):
        raise UserError(
            f"{path}: holds none of the files that a {type(found).__name__} reads ({', '.join(names)}); copy them there"
        )


def _backend(found: Any, path: Path) -> tokenizers.Tokenizer:
    """A copy of the fast backend, free of padding, truncation and chance."""
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UserError(
            f"{path}: transformers has no fast tokenizer for a {type(found).__name__}; bertjax reads those that a "
            "tokenizer.json can describe"
        )
    state = backend_state.tokenizer_state(backend)
    if state["model"].get("dropout"):
        raise UserError(f"{path}: the tokenizer drops merges at random (dropout); set model.dropout to null")
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    try:
        backend.encode(_UNKNOWN)
    except BaseException as error:  # noqa: BLE001  (the library raises bare Exception; a panic is none)
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UserError(
            f"{path}: cannot write unknown text ({error}); name the vocabulary's own special tokens in "
            "tokenizer_config.json (unk_token ...)"
        ) from None
    return backend


def _special_tokens(found: Any, backend: tokenizers.Tokenizer, unused: set[str]) -> SpecialTokens:
    with _quiet():
        roles = {role: str(token) for role in ROLES if (token := getattr(found, f"{role}_token", None)) is not None}
    roles = {role: t for role, t in roles.items() if backend.token_to_id(t) is not None and role not in unused}
    others = tuple(dict.fromkeys(t for t in map(str, found.all_special_tokens) if t not in roles.values()))
    return SpecialTokens(roles, others, in_text=not getattr(found, "split_special_tokens", False))


def _notes(at: Path, kind: str, backend: tokenizers.Tokenizer, special: SpecialTokens) -> list[str]:
    state, vocab = backend_state.tokenizer_state(backend), backend.get_vocab(with_added_tokens=True)
    notes = [_diff_with_json(at, kind, state)]
    base = backend.get_vocab_size(with_added_tokens=False)
    late = [f"{t} ({vocab[t]})" for t in special.roles.values() if vocab[t] >= base and not (at / JSON).is_file()]
    if late:
        notes.append(f"the vocabulary lacks {', '.join(late)}: transformers appends them to it")
    notes += backend_state.describe_unused_ids(vocab)
    notes.append(_template_difference(backend, special))
    return [note for note in notes if note]


def _diff_with_json(at: Path, kind: str, state: Mapping[str, Any]) -> str:
    """How the result differs from tokenizer.json: named classes rebuild it from tokenizer_config.json."""
    if not (at / JSON).is_file():
        return ""
    written = backend_state.tokenizer_state(tokenizers.Tokenizer.from_file(str(at / JSON)))
    parts = ("normalizer", "pre_tokenizer", "model")
    one, other = ({part: _comparable(found.get(part)) for part in parts} for found in (written, state))
    changed = backend_state.differences(one, other)
    known = {token["content"] for token in written["added_tokens"]}
    more = [f"{t['content']} ({t['id']})" for t in state["added_tokens"] if t["content"] not in known]
    if more:
        changed.append(f"added tokens: {', '.join(more[:5])}{' ...' if len(more) > 5 else ''}")
    if not changed:
        return ""
    return f"tokenizer.json is not what transformers' {kind} uses; taken from the other files: {'; '.join(changed[:6])}"


def _comparable(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    found = {name: value for name, value in part.items() if name not in ("type", "fuse_unk", "merges")}
    found = backend_state.without_empty_affixes(found)
    if isinstance(vocab := found.get("vocab"), list):
        found["vocab"] = list(zip((piece for piece, _ in vocab), backend_state.unigram_scores(vocab), strict=True))
    return found


def _template_difference(backend: tokenizers.Tokenizer, special: SpecialTokens) -> str:
    """A note on how a tokenizer's template differs from the rows that bertjax builds; "" if it does not."""
    if _is_supported(backend, special):
        return ""
    if special.is_t5:
        return "transformers does not append eos to a text; bertjax and its exports do"
    written = " ".join(backend.encode("a", "b").tokens[:12])
    return f"transformers writes two texts as {written}; bertjax and its exports as [CLS] a [SEP] b [SEP]"


def _is_supported(backend: tokenizers.Tokenizer, special: SpecialTokens) -> bool:
    if not special.is_t5:
        return find_layout(backend, special) is not None
    eos = backend.token_to_id(special.roles["eos"])
    (a,), (b,) = (backend.encode_batch_fast([text], add_special_tokens=False) for text in "ab")
    return bool(backend.encode("a", "b").ids == [*a.ids, eos, *b.ids, eos])


def _set_template(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Give a tokenizer, and so an exported one, BERT's or T5's template if its own is not supported."""
    if _is_supported(backend, special):
        return
    if special.is_t5:
        eos = special.roles["eos"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, backend.token_to_id(eos))]
        )
    else:
        cls_id, sep_id = (backend.token_to_id(special.roles[role]) for role in ("cls", "sep"))
        assert cls_id is not None and sep_id is not None  # `special` names tokens that are there
        backend.post_processor = RowLayout(cls_id, sep_id).template(special)


def note_once(path: Path, note: str) -> None:
    line = escape_unprintable(f"note: {path}: {note}")  # a token can be a line end
    if line not in _noted:
        _noted.add(line)
        reporter.say(line)


def note_unused_options(
    config: WordPieceConfig | BpeConfig | SentencePieceConfig | BytesConfig, found: Any, path: Path
) -> None:
    """Note options that were set but differ from the files, which take precedence."""
    if isinstance(config, BpeConfig):
        return  # it has none that a file could decide
    if isinstance(config, SentencePieceConfig | BytesConfig):
        pairs = {"extra_ids": (config.extra_ids, found.extra_ids)}
    else:
        bert = backend_state.bert_options(found.backend)
        strips = backend_state.strips_accents(backend_state.tokenizer_state(found.backend))
        pairs = {
            "lowercase": (config.lowercase, found.lowercase),
            "strip_accents": (strips if config.strip_accents is None else config.strip_accents, strips),
            "tokenize_chinese_chars": (config.tokenize_chinese_chars, bert.get("tokenize_chinese_chars", False)),
        }
    for name, (asked, held) in pairs.items():
        if name in config.model_fields_set and asked != held:
            note_once(path, f"its files say {held} where tokenizer.{name} is {asked}; the files hold")
