"""Loads tokenizers of every kind, and trains those of a configuration without a file; no network is needed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sentencepiece
import tokenizers

from bertjax.config.loading.step_meta import is_checkpoint_step, read_meta
from bertjax.config.schema.data import SentencePieceConfig, WordPieceConfig
from bertjax.data.tokenizers import backend_state, huggingface
from bertjax.data.tokenizers import files as tokenizer_files
from bertjax.data.tokenizers import sentencepiece as tokenizers_sentencepiece
from bertjax.data.tokenizers import wordpiece as tokenizers_wordpiece
from bertjax.data.tokenizers.files import JSON, NATIVE_SPECIAL_TOKENS, SpecialTokens
from bertjax.data.tokenizers.locate import FILES, find_tokenizer, locate
from bertjax.data.tokenizers.unigram import UnigramTokenizer
from bertjax.data.tokenizers.wordpiece import SPECIAL_TOKENS, VERSION, build_wordpiece
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage import pretrained


class Tokenizer:
    """A tokenizer for encoders, with [CLS] and [SEP].

    `pieces` lists the pieces by id, `is_continuation [V]` (bool) marks the pieces that continue a word (none if
    `marks_words` is false), `sha256` identifies the tokenizer. `mask_id` and `unk_id` may be None. Text never gives a
    special token, as in the reference, unless transformers loaded the tokenizer.
    """

    kind = "wordpiece"  # of the configuration's tokenizer sections

    def __init__(
        self, backend: tokenizers.Tokenizer, where: str, special: SpecialTokens = NATIVE_SPECIAL_TOKENS
    ) -> None:
        """`where` names the file in the errors about missing special tokens."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not special.in_text
        self.backend, self.special = backend, special
        vocab = backend.get_vocab(with_added_tokens=True)
        _check_special(vocab, special, where)
        self.pieces = backend_state.pieces(vocab)
        self.vocab_size = len(self.pieces)
        roles = {role: vocab[token] for role, token in special.roles.items()}
        self.pad_id, self.cls_id, self.sep_id = roles["pad"], roles["cls"], roles["sep"]
        self.unk_id, self.mask_id = roles.get("unk"), roles.get("mask")
        state = backend_state.tokenizer_state(backend)
        inside = backend_state.continuation_mask(state, self.pieces)
        self.marks_words = inside is not None
        self.is_continuation = np.zeros(self.vocab_size, bool) if inside is None else inside
        self.lowercase = backend_state.lowercases(state)
        self.json = json.dumps(state, ensure_ascii=False, indent=1, sort_keys=False) + "\n"
        if not special.is_native:
            self.json = tokenizer_files.to_state_json(state, special)
        self.sha256 = hashlib.sha256(json.dumps(json.loads(self.json), sort_keys=True).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return from_json, (self.json, "the tokenizer")  # the backend's own pickle forgets `encode_special_tokens`

    @property
    def behavior(self) -> dict[str, Any]:
        """What has to be equal for weights to fit (`backend_state.behavior`)."""
        return backend_state.behavior(backend_state.tokenizer_state(self.backend), self.pieces)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without special tokens. Runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    @property
    def space_between(self) -> str:
        """What to prepend to a text to get the pieces that it has after another word: a space if word-initial pieces
        contain one that is not added automatically (byte-level BPE without add_prefix_space)."""
        first, later, both = self.encode_batch(["a", " a", "a a"])
        return " " if both != first * 2 and both == first + later else ""

    def encode_batch_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(piece ids, offsets) of each text, without special tokens; an offset is (start, stop) in characters of it."""
        found = self.backend.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: list[int]) -> str:
        """Pieces joined to words; special tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def files(self, about: dict[str, Any] | None = None) -> dict[str, str]:
        """{name: text} of a folder that transformers' AutoTokenizer loads; `about`: more for tokenizer_config.json."""
        state = backend_state.tokenizer_state(self.backend)
        said = {"do_lower_case": self.lowercase}
        chosen = backend_state.bert_options(self.backend)
        said |= {name: value for name, value in chosen.items() if value != _DEFAULTS[name]}
        is_wordpiece = bool(state["model"].get("continuing_subword_prefix"))
        plain = is_wordpiece and not any("\n" in piece for piece in self.pieces)
        text = json.dumps(state, ensure_ascii=False, indent=1) + "\n"
        listed = self.pieces if plain else ()
        return tokenizer_files.hf_folder_files(text, self.special, {**(about or {}), **said}, listed)

    def save(self, folder: Path) -> None:
        """Write vocab.txt and tokenizer.json atomically, and the settings of a tokenizer loaded by transformers."""
        files = self.files()
        native = {name: text for name, text in files.items() if name in ("vocab.txt", JSON)}
        tokenizer_files.write(folder, native if self.special.is_native else files)


def _check_special(vocab: dict[str, int], special: SpecialTokens, where: str) -> None:
    if special.is_native:
        for piece in SPECIAL_TOKENS:
            if piece not in vocab:
                raise UserError(f"{where}: the vocabulary has no {piece}; BERT needs {' '.join(SPECIAL_TOKENS)}")
    for role in ("pad", "cls", "sep"):
        if role not in special.roles:
            problem = f"the tokenizer has no {role}_token; BERT's rows need pad, cls and sep"
            raise UserError(f"{where}: {problem}: name them in tokenizer_config.json")


# A Tokenizer, a SentencePieceTokenizer or a UnigramTokenizer: the kind of preprocessing says which.
AnyTokenizer: TypeAlias = Any


def load(
    config: WordPieceConfig | SentencePieceConfig,
    base: Path,
    *,
    vocab_size: int,
    train_source_documents: Callable[[], Iterator[list[str]]] | None,
    cache: Path,
    fingerprint: str | None = None,
    text_bytes: int = 0,
) -> AnyTokenizer:
    """The tokenizer of a config: read from `config.path`, or trained on the given documents (lists of sentences).

    A trained one is kept under `cache`, keyed by the options and the `fingerprint` of the text (default: a hash).
    `text_bytes`: the size of the text's files, for the progress that is shown; 0 if unknown.
    """
    if config.path is not None:
        place = locate(config.path, base)
        with pretrained.name_in_errors(place):
            found = from_pretrained(place.path, **config.model_dump(include=set(_DEFAULTS)))  # each kind has some
        if isinstance(found, Tokenizer) == isinstance(config, SentencePieceConfig):
            has = "WordPiece" if isinstance(found, Tokenizer) else "SentencePiece"
            raise UserError(f"{place}: is a {has} tokenizer; tokenizer.kind is {config.kind}: name one of that kind")
        huggingface.note_unused_options(config, found, Path(str(place)))
        return found
    if train_source_documents is None:
        raise UserError("tokenizer: neither 'path' nor text to train on; set tokenizer.path or tokenizer.train_on")
    options: dict[str, Any] = {"vocab_size": config.vocab_size or vocab_size}
    trainer: Callable[..., AnyTokenizer]
    if isinstance(config, SentencePieceConfig):
        trainer = tokenizers_sentencepiece.train
        options |= {"extra_ids": config.extra_ids, "character_coverage": config.character_coverage}
        recipe = [config.kind, tokenizers_sentencepiece.VERSION, sentencepiece.__version__, *options.values()]
    else:
        trainer = train
        options |= {"lowercase": config.lowercase, "min_frequency": config.min_frequency}
        recipe = [VERSION, tokenizers.__version__, *options.values()]
        chosen = config.model_dump(include={"strip_accents", "tokenize_chinese_chars"})
        if chosen := {name: value for name, value in chosen.items() if value != _DEFAULTS[name]}:
            options |= chosen
            recipe.append(chosen)
    recipe.append(fingerprint or _hash_documents(train_source_documents()))
    folder = cache / "tokenizers" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
    if not (folder / "tokenizer.json").is_file():
        passes = 1 if isinstance(config, SentencePieceConfig) else 2
        title = f"training a tokenizer of {options['vocab_size']:,} pieces"
        with reporter.task(title, passes * text_bytes, "bytes") as task:
            trainer(_CountedDocuments(train_source_documents, task), **options).save(folder)
    return from_file(folder)


def from_json(text: str, where: str) -> AnyTokenizer:
    """The tokenizer of any kind whose `json` attribute is `text`; `where` is named in errors."""
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("type") == "sentencepiece":
            return tokenizers_sentencepiece.from_state(state, where)
        if isinstance(state, dict) and state.get("type") == tokenizer_files.STATE_KEY:
            return _build(*tokenizer_files.from_state_json(state, where), where)
        return Tokenizer(tokenizers.Tokenizer.from_str(text), where)
    except Exception as error:  # the library raises bare Exception
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not a tokenizer.json ({str(error)[:120]})") from None


def _build(text: str, special: SpecialTokens, where: str) -> AnyTokenizer:
    kind: Any = UnigramTokenizer if special.is_t5 else Tokenizer
    return kind(backend_state.parse_backend(text, where), where, special)


def from_pretrained(path: Path, **options: Any) -> AnyTokenizer:
    """The tokenizer of a file, a folder as for `from_file`, a run or a checkpoint. Raises UserError."""
    found = find_tokenizer(path) or path
    if is_checkpoint_step(found):
        return from_json(read_meta(found)["tokenizer_json"], str(path))
    return from_file(found, **options)


_DEFAULTS: dict[str, Any] = {  # BERT's and T5's
    "lowercase": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "extra_ids": tokenizers_sentencepiece.EXTRA_IDS,
}


def from_file(path: Path, **options: Any) -> AnyTokenizer:
    """A tokenizer from *.model (SentencePiece), tokenizer.json, vocab.txt, or a folder with one of them.

    Options: `lowercase`, `strip_accents` and `tokenize_chinese_chars` for a vocab.txt, `extra_ids` for a *.model, where
    files leave them open. With settings in the folder, transformers loads it. Raises UserError.
    """
    path, options = Path(path), _DEFAULTS | options
    if not path.exists():
        wanted = "a vocab.txt, a tokenizer.json, a spiece.model or a folder with one"
        raise UserError(f"{path}: no such file; give {wanted}")
    path = tokenizer_files.prefer_tokenizer_json(path)
    if found := _load_native(path):
        return found
    if huggingface.needs_transformers(path):
        names = {"lowercase": "do_lower_case"}
        given = {names.get(name, name): x for name, x in options.items() if x != _DEFAULTS[name]}
        backend, special = huggingface.load(path, given)
        return _build(backend.to_str(), special, str(path))
    if path.is_dir():
        present = [path / name for name in FILES if (path / name).is_file()]
        if not present:
            raise UserError(huggingface.NO_VOCAB_FILE.format(path))
        path = present[0]
    return _from_bare(path, options)


def _load_native(path: Path) -> AnyTokenizer | None:
    """The tokenizer of a folder that bertjax wrote and that is unchanged, without transformers."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == JSON:
        if found := tokenizer_files.read_verified(folder):
            return _build(*found, str(path))
    return tokenizers_sentencepiece.from_saved(folder) if path.is_dir() or path.name in FILES else None


def _from_bare(path: Path, options: dict[str, Any]) -> AnyTokenizer:
    if path.suffix == ".model":
        return tokenizers_sentencepiece.from_model(path, extra_ids=options["extra_ids"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; tokenizer.path takes a vocab.txt or a tokenizer.json") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; copy or export it again")
    if path.suffix == ".json":
        return _from_json(path, text)
    vocab = tokenizers_wordpiece.read_vocab(text)
    for note in backend_state.describe_unused_ids(vocab):
        huggingface.note_once(path, note)
    chosen = {name: options[name] for name in ("lowercase", "strip_accents", "tokenize_chinese_chars")}
    return Tokenizer(build_wordpiece(vocab, **chosen), str(path))


def train(documents: tokenizers_wordpiece.Documents, **options: Any) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces: the same for the same text (`wordpiece.train`)."""
    return Tokenizer(tokenizers_wordpiece.train(documents, **options), "the trained tokenizer")


class _CountedDocuments:
    """Documents that are counted the first time they are read."""

    def __init__(self, documents: Callable[[], Iterator[list[str]]], task: reporter.Task) -> None:
        self._documents, self._task, self._passes = documents, task, 0

    def __call__(self) -> Iterator[list[str]]:
        self._passes += 1
        is_first = self._passes == 1
        for document in self._documents():
            if is_first:
                self._task.advance(1, "documents")
            yield document


def _hash_documents(documents: Iterator[list[str]]) -> str:
    digest = hashlib.sha256()
    for sentences in documents:
        digest.update("\n".join(sentences).encode() + b"\n\n")
    return digest.hexdigest()


def _from_json(path: Path, text: str) -> AnyTokenizer:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the tokenizer again") from None
    model = state.get("model") if isinstance(state, dict) else None
    model = model if isinstance(model, dict) else {}
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)
    if kind == "Unigram":
        return tokenizers_sentencepiece.from_unigram(state, str(path))
    if kind != "WordPiece":
        said = f"a {kind} tokenizer" if kind else "no tokenizer.json of the tokenizers library"
        raise UserError(f"{path}: is {said}; without settings in its folder bertjax reads WordPiece and Unigram")
    return Tokenizer(backend_state.parse_backend(text, str(path)), str(path))
