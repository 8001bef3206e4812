"""Where things are kept that can be made again: decoded data, compiled programs, built kernels."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from nas.errors import InputError


def cache_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """``folder``, else ``NAS_CACHE_DIR``, else ``~/.cache/nas``; not created here."""
    return (
        Path(folder or os.environ.get("NAS_CACHE_DIR") or Path.home() / ".cache" / "nas")
        .expanduser()
        .absolute()
    )


def cache_folder(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """The folder ``name`` of the cache, created for this user alone where it can be created.

    What is loaded from there runs, or is believed. So InputError is raised where another user owns the cache or
    may write to it: a search stops rather than run what somebody put there. A folder that cannot be created
    is for the caller, who fails to write to it.
    """
    cache = cache_root(root)
    for folder in (cache, cache / name):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if danger := _danger(folder):
            raise InputError(
                f"cache: {folder} {danger}, and what lies there would run as you: "
                "delete it or set NAS_CACHE_DIR to a folder that only you can write to"
            )
    return cache / name


def is_safe(path: Path) -> bool:
    """Whether the file ``path`` is there and nobody but this user (and root) can have written it."""
    return path.exists() and not _danger(path)


def _danger(path: Path) -> str | None:
    """Who else could have written ``path``, in words; None where nobody could, or it is not there."""
    if not hasattr(os, "getuid"):  # Windows, which has no modes
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    if status.st_uid not in (os.getuid(), 0):
        return f"belongs to {_user(status.st_uid)}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _user(number: int) -> str:
    import pwd  # not on Windows

    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"
