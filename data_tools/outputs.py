"""Outputs made once: built aside, published by one rename, recognised when the same command runs again."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmbert.errors import ConfigError
from cmbert.files.names import real
from cmbert.files.operations import hash_file
from data_tools.storage.files import InputFile, is_remote, size_of

HASHED_BYTES = 2_000_000_000  # two or three seconds on one core


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names nothing: a failed write does not know its file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def describe_inputs(files: Sequence[InputFile]) -> list[dict[str, Any]]:
    """Return how a second run knows each input file again: name, size in bytes, hash of its content or time.

    Up to HASHED_BYTES in all it is the content: a copy and a `touch` are the same input, an edit never is. Terabytes
    cannot be read again at every start; there it is the time of the last change, in nanoseconds. Every edit sets that
    anew, also one that keeps the size, and hours lie between an input's last edit and an output's end: only a time set
    back by hand could hide an edit. A copy keeps its time by `cp -p` or `rsync -a`; without, it is another input: its
    work is done again, which costs time and is never wrong. Of a file in a store it is the store's version.
    """
    sizes = [size_of(file) for file in files]
    is_hashed = sum(size for file, size in zip(files, sizes, strict=True) if isinstance(file, Path)) <= HASHED_BYTES
    return [
        {"name": file.name, "bytes": size, **_mark(file, is_hashed)} for file, size in zip(files, sizes, strict=True)
    ]


def _mark(file: InputFile, is_hashed: bool) -> dict[str, Any]:
    if not isinstance(file, Path):
        return {"version": file.version}
    return {"blake2b": hash_file(file)} if is_hashed else {"modified_ns": file.stat().st_mtime_ns}


def refuse_inside(inputs: Sequence[str], option: str, output: Path) -> None:
    """Raise ConfigError when `output` lies in one of the folders `inputs`: its texts would be read as input, too."""
    for folder in (Path(name) for name in inputs if not is_remote(name)):
        if real(folder) in real(output).parents:
            raise ConfigError(f"{option} {output}: lies inside {folder}, which is read as input; name another")


def is_done(output: Path, record: str, settings: dict[str, Any], option: str = "--output") -> bool:
    """Return whether `output` was already made with `settings`, which it keeps in the JSON file `record`.

    Raises ConfigError, naming the `option` it was given by, when it holds anything else: it is never overwritten.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    advice = f"choose another {option} or remove it"
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
