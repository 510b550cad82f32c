"""The passes over evaluation sets, so that no text of them is trained on. Files are read whatever is in them."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmbert.config.texts import DELIMITERS, SUFFIXES
from cmbert.errors import ConfigError, InputError
from cmbert.files.operations import doing
from cmbert.files.reading import BOM, MAX_LINE_BYTES, json_value
from cmbert.files.whole import write_json
from data_tools.clean.duplicates.signatures import save_array
from data_tools.clean.setup import Setup
from data_tools.clean.text.contamination import NAMES_FILE, RUN_UNITS, index_of, runs_of
from data_tools.clean.text.letters import CANONICAL
from data_tools.input.listing import input_files
from data_tools.input.readers import CONVERT, PARQUET_BATCH_ROWS
from data_tools.input.streams import damages, kind_of, open_parquet, reading_parquet, text_stream
from data_tools.outputs import describe_inputs
from data_tools.storage.files import InputFile, open_input

MOST_SETS = 1 << 16


class EvaluationFile(NamedTuple):
    """A file of a set."""

    number: int
    """Of the set, among those that the command names."""
    path: InputFile


class EvaluationItem(NamedTuple):
    """One task: a file."""

    setup: Setup
    rank: int
    file: EvaluationFile


class EvaluationSets(NamedTuple):
    """The sets that a command names."""

    paths: Sequence[str] = ()
    names: Sequence[str] = ()
    """What they are called, in the order of the paths."""
    files: Sequence[EvaluationFile] = ()

    @classmethod
    def of(cls, paths: Sequence[str]) -> "EvaluationSets":
        """Return them. Raises InputError for a path that leads to no file, ConfigError for too many."""
        files = [EvaluationFile(number, path) for number, name in enumerate(paths) for path in _files_of(name)]
        return cls(paths, _set_names(paths), files)

    def settings(self) -> dict[str, Any]:
        """Return what a report keeps of them."""
        about = describe_inputs([file.path for file in self.files])
        described = [{"set": self.names[file.number], **own} for file, own in zip(self.files, about, strict=True)]
        return {"decontaminate": described} if described else {}


class Join(NamedTuple):
    """The last task."""

    setup: Setup
    sets: EvaluationSets


def _set_names(paths: Sequence[str]) -> list[str]:
    """Return what sets are called: the folder's or file's own name, or its path if two have that."""
    if len(paths) > MOST_SETS:
        raise ConfigError(f"--decontaminate: {len(paths):,} paths, at most {MOST_SETS:,}; name the folders they lie in")
    short = [Path(os.path.abspath(path)).name.split(".")[0] for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def _files_of(name: str) -> list[InputFile]:
    """Return the files of a set, in order; in folders all files of our kinds: .json of lines, too."""
    if not os.path.isdir(name):
        return input_files([name])
    found, seen = list[Path](), set[str]()
    for place, folders, names in os.walk(name, followlinks=True):
        is_new = os.path.realpath(place) not in seen
        seen.add(os.path.realpath(place))
        folders[:] = sorted(folder for folder in folders if is_new and not folder.startswith("."))
        found += [Path(place, file) for file in sorted(names) if is_new and file.endswith(SUFFIXES)]
    return input_files([str(path) for path in found] or [name])


def hash_evaluation_file(item: EvaluationItem) -> dict[str, Any]:
    """Write down the runs of every text of a file."""
    texts = (text for text in texts_in(item.file.path) if len(text) >= RUN_UNITS)
    runs = [own for text in texts if len(own := runs_of(CANONICAL(text)))]
    arrays = np.cumsum([0, *map(len, runs)]), np.concatenate([np.zeros(0, np.uint64), *runs])
    for path, array in zip(_arrays_of(item.setup, item.rank), arrays, strict=True):
        save_array(path, array)
    return {"texts": len(runs)}


def join_evaluation_sets(join: Join) -> dict[str, Any]:
    """The runs of all files -> what texts are looked up in. Raises InputError for a set without a text long enough."""
    folder = join.setup.evaluation_texts
    assert folder
    names = join.sets.names
    arrays, counts = index_of(_runs_of_files(join), len(names))
    for file, array in arrays.items():
        save_array(folder / file, array)
    write_json(folder / NAMES_FILE, list(names))
    for path, count in zip(join.sets.paths, counts, strict=True):
        if not count:
            raise InputError(f"--decontaminate {path}: no text of {RUN_UNITS} Hanzi or words or more; name its texts")
    return {"texts": dict(zip(names, counts, strict=True))}


def _arrays_of(setup: Setup, rank: int) -> list[Path]:
    assert setup.evaluation_texts
    return [setup.evaluation_texts / f"{rank:05d}.{name}.npy" for name in ("bounds", "runs")]


def _runs_of_files(join: Join) -> Iterator[tuple[int, np.ndarray]]:
    for rank, file in enumerate(join.sets.files):
        paths = _arrays_of(join.setup, rank)
        with doing("read", paths[0]):
            bounds, runs = map(np.load, paths)
        yield from ((file.number, own) for own in np.split(runs, bounds[1:-1]) if len(own))


def texts_in(path: InputFile) -> Iterator[str]:
    """Yield every text of a file, under any key or column, however deep. Raises InputError naming file and line."""
    kind = kind_of(path)
    with open_input(path) as raw:
        if kind == "parquet":
            yield from _parquet_texts(path, raw)
            return
        try:
            with doing("read", str(path)):
                if kind == "csv":
                    yield from _csv_texts(path, text_stream(path, raw))
                elif kind in ("json", "jsonl"):
                    for value in _json_values(path, text_stream(path, raw)):
                        yield from strings(value)
                else:  # a tsv's quotes are no quotes in many sets, and no letters
                    for _, line in _lines(path, text_stream(path, raw)):
                        yield from line.split(DELIMITERS["tsv"]) if kind == "tsv" else [line]
        except damages(path) as error:
            raise InputError(f"{path}: damaged or truncated ({error})") from error


def strings(value: Any) -> Iterator[str]:
    """Yield the texts in a value of JSON or parquet."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict | list):
            waiting += reversed(found.values() if isinstance(found, dict) else found)


def _lines(path: InputFile, stream: Any) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines that are not blank."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES:,} bytes; cut it")
        try:
            text = (line.removeprefix(BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not valid UTF-8 at byte {error.start} of the line{CONVERT}") from error
        if text.strip():
            yield number, text.rstrip("\r\n")


def _json_values(path: InputFile, stream: Any) -> Iterator[Any]:
    """Yield the values of JSON lines, or the one that is the whole file."""
    lines = list[str]()
    for number, line in _lines(path, stream):
        if not lines:  # every line was one up to here
            try:
                yield json_value(line)
                continue
            except ValueError as error:
                if number > 1 and kind_of(path) == "jsonl":
                    raise InputError(f"{path}:{number}: not JSON ({error})") from error
        lines.append(line)
    if lines:
        try:
            yield json_value("\n".join(lines))
        except ValueError as error:
            raise InputError(f"{path}: neither one JSON value nor JSON lines ({error})") from error


def _csv_texts(path: InputFile, stream: Any) -> Iterator[str]:
    rows = csv.reader((f"{line}\n" for _, line in _lines(path, stream)), strict=True)
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        for row in rows:
            yield from row
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a row of csv ({error})") from error


def _parquet_texts(path: InputFile, raw: Any) -> Iterator[str]:
    with reading_parquet(path):
        for batch in open_parquet(path, raw).iter_batches(PARQUET_BATCH_ROWS):
            for column in batch.columns:
                yield from strings(column.to_pylist())
