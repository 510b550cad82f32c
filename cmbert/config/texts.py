"""How much text lies in files and folders, and how many tokens that will be: an estimate from their beginnings."""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cmbert.errors import InputError

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt")  # files of text; each also compressed
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (*KINDS, *(kind + compression for kind in KINDS for compression in COMPRESSIONS), ".parquet")
UNREAD = {".parquet": 2.0, ".zst": 3.0}  # bytes of Chinese text per byte of such a file; ours, a rough mean
SAMPLE_BYTES = 2**18  # of each file: its beginning stands for the rest
BLOCK_BYTES = 1024  # of a gzip file at a time: the share that was read is known so well
SAMPLE_FILES = 100  # of many files so many stand for the others
WIDE_PER_TOKEN = 1.5  # Hanzi a token: the quickstart's 8,192 ids have 1.45 to 1.47; 32,768 ids have 1.6 to 2.3
OTHERS_PER_TOKEN = 4.0  # Latin letters, digits and the like; ours
MOST_LINE_BYTES = 2**24  # of a first line: a longer one is not looked at
DELIMITERS = {"csv": ",", "tsv": "\t"}
SHOWN_NAMES = 10
ESCAPED = re.compile(r"\\u[0-9a-fA-F]{4}")


@dataclass(frozen=True)
class Amount:
    """What texts amount to: Hanzi and other wide characters, and all others."""

    wide: float = 0.0
    others: float = 0.0

    @property
    def utf8_bytes(self) -> int:
        """Bytes as UTF-8."""
        return round(3 * self.wide + self.others)

    @property
    def tokens(self) -> int:
        """Tokens, estimated."""
        return round(self.wide / WIDE_PER_TOKEN + self.others / OTHERS_PER_TOKEN)


def texts_by_key(paths: Sequence[Path], keys: Sequence[str]) -> dict[str, list[Path]]:
    """Return which files and folders have their texts under which of `keys`, a folder of several by its files.

    Raises InputError for what is missing, and for a file whose first record or row has none of the keys.
    """
    found: dict[str, dict[Path, None]] = {}
    for path in paths:
        files = list(_files_of(path))
        taken = {file: _key_of(file, keys) for file in files[:SAMPLE_FILES]}
        is_one = len(set(taken.values())) == 1
        for file in files[:1] if is_one else files:
            key = taken.get(file) or _key_of(file, keys)
            found.setdefault(key, {})[path if is_one else file] = None
    return {key: list(places) for key, places in found.items()}


def measure_texts(paths: Sequence[Path]) -> Amount:
    """Return how much text the files and folders hold. Raises InputError for what is missing, empty or no text."""
    files = [file for path in paths for file in _files_of(path)]
    wide = others = seen = left = 0.0
    for number, file in enumerate(files):
        size = file.stat().st_size
        if number >= SAMPLE_FILES:
            left += size
            continue
        seen += size
        found = _measure(file, size)
        wide, others = wide + found.wide, others + found.others
    if not wide + others:
        raise InputError(f"--text {' '.join(map(str, paths))}: holds no text")
    return Amount(wide * (1 + left / seen), others * (1 + left / seen))


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"--text {path}: not {', '.join(SUFFIXES)}; convert it, or name another file")
        yield path
        return
    if not path.is_dir():
        raise InputError(f"--text {path}: no such file or folder; name the text that you have")
    found = sorted(_walk(path))
    if not found:
        raise InputError(f"--text {path}: holds no file that ends in {', '.join(SUFFIXES)}")
    yield from found


def _walk(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if name.endswith(SUFFIXES) and not name.startswith("."))


def _measure(file: Path, size: int) -> Amount:
    """Return the text of one file of `size` bytes, from its beginning."""
    if file.suffix in UNREAD:
        return Amount(size * UNREAD[file.suffix] / 3)
    with open(file, "rb") as raw:
        if file.suffix == ".gz":
            beginning, read = _unpacked(file, raw)
        else:
            beginning = raw.read(SAMPLE_BYTES)
            read = len(beginning)
    share = max(read, 1) / max(size, 1)
    text = ESCAPED.sub("一", beginning.decode("utf-8", errors="ignore"))
    wide = sum(character >= "\u2e80" for character in text)
    return Amount(wide / share, (len(text) - wide) / share)


def _key_of(file: Path, keys: Sequence[str]) -> str:
    """Return the first of `keys` that the first record or row of a file has; the first of all where it does not say."""
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "csv", "tsv"):
        return keys[0]
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        try:
            first = stream.readline(MOST_LINE_BYTES).decode("utf-8-sig")
            record = json.loads(first) if kind == "jsonl" else next(csv.reader([first], delimiter=DELIMITERS[kind]), [])
        except (ValueError, RecursionError, OSError, EOFError, csv.Error):
            return keys[0]  # damaged: `clean` says how, with the line
    names = [str(name).strip() for name in record] if isinstance(record, (dict, list)) else []
    if names and not set(keys) & set(names):
        raise InputError(
            f"--text {file}: no {' or '.join(map(repr, keys))} in its first line, which has "
            f"{', '.join(names[:SHOWN_NAMES])}; say --text-key NAME, several names if files differ"
        )
    return next((key for key in keys if key in names), keys[0])


def _unpacked(file: Path, raw: IO[bytes]) -> tuple[bytes, int]:
    """Return the beginning of what is packed in a gzip file, and how many bytes of the file that took."""
    unpacking, beginning, read = zlib.decompressobj(wbits=31), b"", 0  # 31: with gzip's head
    while len(beginning) < SAMPLE_BYTES and not unpacking.eof and (block := raw.read(BLOCK_BYTES)):
        read += len(block)
        try:
            beginning += unpacking.decompress(block)
        except zlib.error as error:
            raise InputError(f"--text {file}: not gzip: {error}") from error
    return beginning, read
