"""Finds and reads input files, local or in an object store, compressed or not, with one-line errors."""

import bz2
import functools
import glob
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from bertjax.errors import StorageError, UserError
from bertjax.progress.counted_file import count_reads
from bertjax.storage import remote


def _open_zst(file: BinaryIO, mode: str = "rb") -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"), 1 << 20)  # type: ignore[arg-type]


OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zst}
UNSUPPORTED_SUFFIXES = {".zip", ".7z", ".tar", ".tgz", ".rar"}
UNSUPPORTED = "files are not read; unpack it, or compress it with gzip, xz, bzip2 or zstd"
MAX_LINE = 1 << 26  # bytes; memory holds a line, and what it describes as JSON takes up to twenty times as much
MAX_EXPANSION = 200  # times the size of a compressed file; text reaches 50
_EXPANSION_START = 1 << 28  # bytes read before the size of the file is looked up
DECODE_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)


def content_suffix(path: Path) -> str:
    """The end of a name without that of its compression: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def resolve_path(name: str, base: Path) -> Path:
    """`name` with `~` expanded, relative names taken from `base` (the folder of the config that wrote them)."""
    path = remote.as_path(name)
    return path if path.is_absolute() or remote.is_remote(path) else base / path


def expand_globs(patterns: list[str], base: Path) -> list[Path]:
    """The files that match names and globs: in the order given, each glob sorted, without duplicates.

    Raises UserError for a missing file, a folder, a glob without a match and an empty file.
    """
    found: dict[Path, int | None] = {}
    for pattern in patterns:
        path = resolve_path(pattern, base)
        with remote.remote_errors(path):
            found.update(_glob_files(path, base))
    for path, size in found.items():
        if size == 0:
            raise UserError(f"{path}: the file is empty; remove it from the list or write it again")
    return list(found)


def _glob_files(path: Path, base: Path) -> dict[Path, int | None]:
    """The files that match a name or a glob, in order, and their sizes."""
    if (size := remote.file_size(path)) is not None:
        return {path: size}
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir())
        if not inside:
            raise UserError(f"{path}: the folder is empty; name files, or a glob over them")
        raise UserError(f"{path}: is a folder; name its files, or a glob such as {path / '*'}{Path(inside[0]).suffix}")
    far = remote.is_remote(path)
    if not glob.has_magic(str(path)):
        hint = "check the bucket and the name" if far else f"check the name (relative names start at {base.resolve()})"
        raise UserError(f"{path}: no such file; {hint}")
    if far and "**" in str(path):
        raise UserError(f"{path}: '**' is not searched for in an object store; name the folders, or use '*'")
    names = sorted(path.parent.glob(path.name) if far else map(Path, glob.glob(str(path), recursive=True)))
    sizes = remote.map_threaded(remote.file_size, names) if far else map(remote.file_size, names)
    files: dict[Path, int | None] = {p: size for p, size in zip(names, sizes, strict=True) if size is not None}
    if not files:
        start = "" if far else f"; relative names start at {base.resolve()}"
        raise UserError(f"{path}: no file matches{start}")
    return files


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """The bytes of the file, decompressed if its suffix is one of `OPENERS`."""
    if path.suffix in UNSUPPORTED_SUFFIXES:
        raise UserError(f"{path}: {path.suffix} {UNSUPPORTED}")
    try:
        with remote.remote_errors(path):
            file: Any = count_reads(path.open("rb"))
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error}); check its permissions") from None
    with file, OPENERS[path.suffix](file, "rb") if path.suffix in OPENERS else file as opened:
        yield opened


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (line number from 1, line without its end). UserError for a truncated archive or text not in UTF-8."""
    number = 0
    with open_binary(path) as file, remote.remote_errors(path):
        try:
            for number, raw in enumerate(_raw_lines(file, path), 1):
                yield number, _decode(raw, path, number)
        except DECODE_ERRORS as error:
            if remote.is_remote(path) and isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise StorageError(f"{path}: after line {number}: reading broke off ({error}); run it again") from error
            damaged = f"the {path.suffix} data is cut short or damaged ({error}); copy or compress it again"
            reason = damaged if path.suffix in OPENERS else f"cannot be read ({error})"
            raise UserError(f"{path}: after line {number}: {reason}") from None
    if number == 0:
        raise UserError(f"{path}: the file is empty; remove it from the list or write it again")


def _raw_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines that end with a line feed or, in a file without one, with a carriage return (old Macs).

    Raises UserError for a line above MAX_LINE.
    """
    parts = _bounded_parts(file, path)
    first = next(parts, b"")
    found: Iterator[bytes] = chain([first] if first else [], parts)
    if b"\n" not in first and b"\r" in first:
        found = _split_at_returns(found)
    for number, line in enumerate(found, 1):
        if len(line) > MAX_LINE:
            remedy = "write one record or paragraph a line"
            raise UserError(f"{path}: line {number}: longer than {MAX_LINE:,} bytes; {remedy}")
        yield line


def _bounded_parts(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines, the long ones in parts above MAX_LINE. Raises UserError for an archive that expands too far."""
    read, limit = 0, _EXPANSION_START if path.suffix in OPENERS else float("inf")
    while part := file.readline(MAX_LINE + 1):
        read += len(part)
        if read > limit:
            limit = max(limit, MAX_EXPANSION * (remote.file_size(path) or 0))
        if read > limit:
            why = f"expands to more than {MAX_EXPANSION} times its size"
            raise UserError(f"{path}: {why}; unpack it if you trust it, and name the unpacked file")
        yield part


def _split_at_returns(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Split at carriage returns; those at the end of the file add no empty lines."""
    held, blank = b"", 0
    for part in parts:
        *lines, held = (held + part).split(b"\r")
        for line in lines:
            if line:
                yield from [b""] * blank
                yield line
                blank = 0
            else:
                blank += 1
        if len(held) > MAX_LINE:
            break
    yield from [*[b""] * blank, held] if held else []


def read_pieces(path: Path, characters: int) -> Iterator[str]:
    """`read_text` in pieces of lines, of about that many characters each; joined they are the text."""
    held: list[str] = []
    size = 0
    for number, line in read_lines(path):
        text = line if number == 1 else f"\n{line}"
        held.append(text)
        size += len(text)
        if size >= characters:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def read_text(path: Path) -> str:
    """The file as text with newlines as line ends; errors as `read_lines`."""
    return "\n".join(line for _, line in read_lines(path))


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = f"0x{raw[error.start]:02x} at byte {error.start + 1}"
        # a byte order mark tells UTF-16; what is left of 8-bit files is mostly Excel's
        found = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        raise UserError(
            f"{path}: line {number}: not UTF-8 ({byte}); save it as UTF-8, or convert it: iconv -f {found} -t UTF-8"
        ) from None


def sha256_of_files(paths: list[Path], root: Path | None = None) -> str:
    """Hash over (name, size, content hash) of every file; names are relative to `root`, or bare without one.

    In an object store the stored checksum is the content hash, so a local copy of the file has another hash.
    """
    digest = hashlib.sha256()
    far = [path for path in paths if remote.is_remote(path)]
    facts = remote.map_threaded(lambda path: (remote.file_size(path), remote.checksum(path)), far)
    known = dict(zip(far, facts, strict=True))
    for path in paths:
        name = path.relative_to(root).as_posix() if root else path.name
        if path in known:
            size, content = known[path]
        else:
            stat = path.stat()
            size, content = stat.st_size, _content_hash(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        digest.update(f"{name}\0{size}\0{content}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _content_hash(path: str, size: int, mtime_ns: int) -> str:
    # size and mtime_ns are part of the cache key: a changed file is read again
    with count_reads(open(path, "rb")) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
