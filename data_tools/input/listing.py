"""Which files are input: what paths, folders, globs and URLs of stores lead to."""

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmbert.config.texts import SUFFIXES
from cmbert.errors import InputError
from cmbert.files.operations import doing
from data_tools.defaults import KINDS_LISTED
from data_tools.input.arrays import may_be_array
from data_tools.input.streams import kind_of
from data_tools.storage.files import InputFile, is_remote, remote_files, size_of

OWN_RECORDS = ("report.json", "sample.json")  # of clean and sample, beside the texts that they made

logger = logging.getLogger(__name__)


def input_files(paths: Sequence[str]) -> list[InputFile]:
    """Expand files, folders (searched to any depth, links followed) and globs, sorted within each, every file once.

    Hidden files and folders count only when they are named themselves: work in progress lies in them. Raises InputError
    for a path that leads to no file, a link that leads nowhere, a file of another kind, and input that is empty
    altogether.
    """
    files: dict[str, InputFile] = {}  # by real name: several links may lead to one file
    for name in paths:
        found = _remote_files(name) if is_remote(name) else _local_files(name)
        if not found:
            raise InputError(f"{name}: no {KINDS_LISTED} file there")
        for file in found:
            files.setdefault(os.path.realpath(file) if isinstance(file, Path) else file.url, file)
    for file in files.values():
        if not file.name.endswith(SUFFIXES):
            raise InputError(f"{file}: not a {KINDS_LISTED} file")
    if not any(map(size_of, files.values())):
        raise InputError(f"{', '.join(paths)}: empty")
    return list(files.values())


def _remote_files(url: str) -> list[InputFile]:
    named, below = remote_files(url)
    return sorted([*named, *_texts_of(below, url)])


def _local_files(name: str) -> list[InputFile]:
    matches = [Path(name)] if os.path.exists(name) else _matches(name)
    return [file for match in matches for file in (_files_below(match) if match.is_dir() else [match])]


def _matches(pattern: str) -> list[Path]:
    """Return what a glob matches, sorted. `**` follows links, which in a circle would have glob.glob go on for ever."""
    head, *rest = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not rest:
        return sorted(Path(match) for match in glob.glob(pattern))
    roots = [Path(match) for match in glob.glob(head or ".") if os.path.isdir(match)]
    below = [glob.escape(str(folder)) for root in roots for folder, _ in _walk(root)]
    return sorted(dict.fromkeys(match for folder in below for match in _matches(f"{folder}/{rest[0] or '*'}")))


def _files_below(root: Path) -> list[InputFile]:
    return _texts_of(sorted(file for _, files in _walk(root) for file in files), root)


def _texts_of(files: Sequence[InputFile], root: Path | str) -> list[InputFile]:
    """Return those of the files below a folder that are of our kinds; of .json those that hold an array.

    Other .json files beside texts say something about them: report.json, sample.json.
    """
    files = [file for file in files if file.name.endswith(SUFFIXES)]
    others = {file for file in files if kind_of(file) == "json" and not may_be_array(file)}
    if named := [str(file) for file in files if file in others and file.name not in OWN_RECORDS]:
        logger.info(
            "%s: .json files that are no array are left out, name one to read it as JSON lines: %s",
            root,
            ", ".join(named),
        )
    return [file for file in files if file not in others]


def _walk(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every folder that is not hidden, from `root` on, with its files; links are followed, each comes once.

    Raises InputError for a link that leads nowhere, OSError for a folder that cannot be read.
    """
    waiting, seen = [root], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        folders, files = list[Path](), list[Path]()
        with doing("list", folder):
            names = sorted(os.listdir(folder))
        for path in (folder / name for name in names if not name.startswith(".")):
            if not path.exists():
                raise InputError(f"{path}: a link that leads nowhere; mend or remove it")
            (folders if path.is_dir() else files).append(path)
        if hidden := [name for name in names if name.startswith(".") and (folder / name).is_dir()]:
            logger.info("%s: hidden folders are left out: %s", folder, ", ".join(hidden))
        yield folder, files
        waiting += reversed(folders)
