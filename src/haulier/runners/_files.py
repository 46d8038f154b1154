"""Files that many jobs write beside each other: no name is taken twice, no write is torn."""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

_UNSAFE = re.compile(r"[^\w.@+() -]")
_MAX_BYTES = 180
"""Of a file name's 255 bytes: leaves room for a suffix and an extension."""


def safe_names(wanted: Mapping[str, str]) -> dict[str, str]:
    """For each key a file name like the wanted one, all different, also where case is ignored.

    A name that had to be changed, or that several keys want, gets a hash of its key: what a key is
    called does not depend on the order of the others. No name has a separator, begins with a dot,
    or is empty.
    """
    cleaned = {key: _cleaned(name) for key, name in wanted.items()}
    takers = Counter(name.casefold() for name in cleaned.values())
    names = {}
    for key, name in cleaned.items():
        own = takers[name.casefold()] == 1 and name == unicodedata.normalize("NFC", wanted[key])
        # A tilde is not a safe character, so no plain name looks like a marked one.
        names[key] = name if own else f"{name}~{_mark(key)}"
    return names


def _cleaned(name: str) -> str:
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    safe = safe.encode("utf-8", "replace")[:_MAX_BYTES].decode("utf-8", "ignore")
    safe = safe.rstrip(". ")
    return "_" + safe[1:] if not safe or safe[0] in ". " else safe


def _mark(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


def open_plain(path: str) -> BinaryIO:
    """The open file; raises OSError for one that is missing, forbidden, or no plain file."""
    # Opening a pipe for reading would wait for a writer, perhaps for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", path)
    return os.fdopen(descriptor, "rb")


@contextmanager
def replacing(target: Path, temp: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all, and is on disk when the block ends.

    `temp` must lie in the same folder and be no other writer's: a leftover of a killed process is
    written over. Raises OSError, and leaves nothing behind.
    """
    try:
        with temp.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.replace(target)
        sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
