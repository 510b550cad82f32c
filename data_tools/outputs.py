"""Outputs made once: built aside, published by one rename, recognised when the same command runs again."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmbert.errors import ConfigError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names nothing: a failed write does not know its file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def describe_inputs(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return name and size in bytes of each input file: how a second run knows its inputs again."""
    return [{"name": path.name, "bytes": path.stat().st_size} for path in files]


def is_done(output: Path, record: str, settings: dict[str, Any]) -> bool:
    """Return whether `output` was already made with `settings`, which it keeps in the JSON file `record`.

    Raises ConfigError when `output` holds anything else: it is never overwritten.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    advice = "choose another --output or remove it"
    if not (output / record).is_file():
        raise ConfigError(f"{output}: exists and has no {record}; {advice}")
    try:
        found = json.loads((output / record).read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{output / record}: does not say how it was made; {advice}") from error
    if found != settings:
        names = [name for name in settings if name not in found or found[name] != settings[name]]
        raise ConfigError(f"{output}: was made with other settings ({', '.join(names)}); {advice}")
    return True
