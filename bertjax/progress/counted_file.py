"""Count the bytes of a file as they are read."""

import io
from typing import Any, BinaryIO

from bertjax.progress import reporter

BUFFER_BYTES = 1 << 18  # counted at once


class _CountedFile(io.RawIOBase):
    """A file whose bytes, before any decompression, count as progress of the current task."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        reporter.advance(len(found), "bytes")
        return len(found)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def count_reads(file: BinaryIO) -> BinaryIO:
    """The same file; what is read from it advances the current task by that many `bytes`."""
    return io.BufferedReader(_CountedFile(file), BUFFER_BYTES)
