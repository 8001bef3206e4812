"""Where things are kept that can be made again: decoded data, compiled programs, built kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """``folder``, else ``NAS_CACHE_DIR``, else ``~/.cache/nas``; not created here."""
    return (
        Path(folder or os.environ.get("NAS_CACHE_DIR") or Path.home() / ".cache" / "nas")
        .expanduser()
        .absolute()
    )
