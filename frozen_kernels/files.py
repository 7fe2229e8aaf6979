"""How a file is replaced in one step, and where measured tables of a user's machine lie."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Content = str | bytes | Callable[[IO[bytes]], object]

NOWHERE = Path(os.devnull) / "frozen_kernels"  # no file can be here: a user without a home folder

_KINDS = {
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def write_whole(path: str | os.PathLike[str], content: Content, *, follow: bool = True) -> None:
    """Replace a file in one step: a process killed at any moment leaves the old file or the new one.

    Permissions of the old file stay, and what a killed writer of the same file left is removed.

    Args:
        path: a file, or where one will be.
        content: text (written as UTF-8), bytes, or a function that writes to the open binary file it is given.
        follow: whether a link at `path` is followed, and stays, or is itself replaced by a file.

    Raises:
        OSError: the folder is missing, or there is something else than a regular file; the message names `path`.
            Whatever was there is still there.
    """
    given = os.fsdecode(path)
    if follow:
        target = os.path.realpath(given)
    else:
        target = os.path.join(os.path.realpath(os.path.dirname(given)), os.path.basename(given))
    folder = os.path.dirname(target)
    mode = None if not follow and os.path.islink(target) else _mode(given)
    # of one host: a lock says nothing of writers on another
    mark = hashlib.sha256(f"{socket.gethostname()}/{os.path.basename(target)}".encode(errors="surrogateescape"))
    stem = os.path.join(folder, f".frozen_kernels-{mark.hexdigest()[:16]}-")
    _remove_left(stem)
    temporary, handle = _create(stem, given)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, target)  # still open, and so still locked
        if fcntl is None:
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(folder)


def _mode(path: str) -> int | None:
    """Permissions of the file at a path, None where there is none; OSError for what is no regular file."""
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found):
        raise IsADirectoryError(f"{path}: is a directory")
    if not stat.S_ISREG(found):
        kind = _KINDS.get(stat.S_IFMT(found), "no regular file")
        raise OSError(f"{path}: is {kind}, only a regular file is replaced")
    return stat.S_IMODE(found)


def _create(stem: str, path: str) -> tuple[str, int]:
    """A new file that begins with `stem`, open and locked; an OSError names `path`."""
    while True:
        temporary = f"{stem}{secrets.token_hex(8)}.tmp"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as why:
            if why.errno == errno.EEXIST:
                continue
            raise OSError(why.errno, why.strerror, path) from None
        if fcntl is None:
            return temporary, handle
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(temporary), os.fstat(handle)):
                return temporary, handle
        os.close(handle)  # another writer took it for one left behind, in the moment before the lock


def _remove_left(stem: str) -> None:
    """Remove temporary files that begin with `stem` and that no living process writes: their locks died with it."""
    if fcntl is None:
        return
    folder, begin = os.path.split(stem)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(begin) and name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    _remove_unlocked(os.path.join(folder, name))


def _remove_unlocked(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)


def _sync(folder: str) -> None:
    """Make a rename in a folder last; not every system can sync one."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace(path: Path, content: Content, *, follow: bool = True) -> None:
    """`write_whole` into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, follow=follow)


def user_file(name: str, variable: str) -> Path:
    """The file that the environment variable names, else one of this name in the user's cache folder.

    In `NOWHERE` where there is no home folder, or none that this user may enter.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given)
    try:
        path = _cache_folder() / "frozen_kernels" / name
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (RuntimeError, OSError):  # no home, or not ours to look into
        return NOWHERE / name
    return path


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
