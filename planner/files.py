"""Files: written whole or not at all, and where the shipped ones stand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str, *, executable: bool = False) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_whole_bytes(path, text.encode("utf-8"), executable=executable)


def write_whole_bytes(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Write `data` to `path` through a temporary file beside it and a rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o755 if executable else 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def data_folder(name: str) -> Path:
    """Return a folder of shipped data ('model_specs', 'hardware_specs', 'examples').

    It stands at the root of a checkout (also when installed editable) and inside the package when
    installed from a wheel.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parent / name
