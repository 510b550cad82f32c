"""`extend-tokenizer`: new ids for a domain's text behind the old ones, which keep their numbers and their meaning.

The text is encoded with the old merges, and byte-pair encoding goes on from there. The new merges come after all old
ones, so `tokenizers` applies them to what the old ones leave: where no new token occurs, an encoding stays as it was.
"""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from cmbert.errors import ConfigError, InputError
from cmbert.files.folders import building
from cmbert.files.json_types import parse_as
from cmbert.files.operations import read_bytes
from cmbert.files.whole import write_bytes, write_json
from cmbert.progress import Progress
from cmbert.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, Tokenizer, load_tokenizer
from data_tools.defaults import TOKENIZER_SAMPLE_BYTES, TXT_DOCUMENTS
from data_tools.encoding.encode import batches
from data_tools.input.announcement import announced_files
from data_tools.input.document import Document
from data_tools.input.readers import reading_options
from data_tools.input.sample import count
from data_tools.outputs import describe_inputs, is_done
from data_tools.storage.files import InputFile
from data_tools.tokenizer.bpe import extend_merges
from data_tools.tokenizer.extend_report import (
    Comparison,
    compare,
    encode_documents,
    in_old_ids,
    report_lines,
    report_values,
)
from data_tools.tokenizer.training import MEASURED_BYTES, MIN_PAIR_COUNT, cut_long, forget_rare, read_sample

RECORD_FILE = "extension.json"
BESIDE = (SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""Files of a tokenizer that stay true; vocab.json and merges.txt, which repeat a part of tokenizer.json, would not."""
HELD_OUT_EVERY = 20  # documents: one of so many is measured on and not learnt from
ID_BYTES = 4
OTHER_KIND = "give a byte-level BPE tokenizer, or make one: `data_tools train-tokenizer --input TEXT --output DIR`"


class NewToken(NamedTuple):
    """A token that a merge of two others makes."""

    left: str
    right: str
    parts: tuple[int, ...]
    """The old ids that spell it."""
    gain: int
    """Tokens that it saved in the text it was learnt from, when it was made."""


def extend_tokenizer(
    directory: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    add: int,
    other: Sequence[str] = (),
    sample_bytes: int = TOKENIZER_SAMPLE_BYTES,
    text_key: str = "text",
    on_bad_line: str = "fail",
    txt_document: str = TXT_DOCUMENTS[0],
) -> None:
    """Add `add` ids, learnt from a sample of `inputs`, to the tokenizer in `directory`; save it to the folder `output`.

    Says so when it is there already. other: text on which to measure how far the encodings change elsewhere. Raises
    ConfigError for a tokenizer that is not byte-level BPE, and for more ids than the text gives; InputError for
    unusable text.
    """
    started = time.monotonic()
    parent = load_tokenizer(directory)
    table = read_table(parent)
    files = announced_files(inputs, txt_document)
    other_files = announced_files(other, txt_document) if other else []
    how = reading_options(text_key, on_bad_line, txt_document)
    settings = {"inputs": describe_inputs(files), "add": add, "tokenizer": parent.fingerprint}
    settings |= {"other": describe_inputs(other_files)} if other else {}
    settings |= {"sample_bytes": sample_bytes, **how, "min_pair_count": MIN_PAIR_COUNT}
    settings["held_out_every"] = HELD_OUT_EVERY
    if is_done(output, RECORD_FILE, settings):
        print(f"{output}: done already, with the same settings")
        return
    sample, skipped = _read(files, sample_bytes, how, "the input")
    elsewhere = _read(other_files, min(sample_bytes, MEASURED_BYTES), how, "--other")[0] if other else []
    learning, held_out, elsewhere = map(cut_long, (*hold_out(sample), elsewhere))
    units, forgotten = count_units(parent, learning)
    counts = {"sources": count(learning), "skipped_lines": dict(skipped), "units": len(units)}
    new = learn(parent, units, add)
    with building(output) as aside:
        save(parent, table, new, aside)
        parts = [token.parts for token in new]
        child = reloaded(parent, aside, parts)
        domain = compare(parent, child, parts, held_out or learning, "measure")
        others = compare(parent, child, parts, elsewhere, "measure --other") if elsewhere else None
        values = record(parent, child, new, domain, others, held_out=len(held_out))
        values |= {"settings": settings, **counts, "rare_units_forgotten": forgotten}
        write_json(aside / RECORD_FILE, values | {"tokenizers_version": tokenizers.__version__})
    text_bytes = sum(len(document.text.encode("utf-8")) for document in learning)
    sizes = f"{parent.vocab_size:,} + {add:,} = {child.vocab_size:,} ids"
    learnt = f"learnt from {len(learning):,} documents, {text_bytes / 1e6:,.1f} MB"
    print(f"{output}: {sizes}, {learnt}, in {time.monotonic() - started:.0f} s")
    for line in report_lines(values["measures"]):
        print(line)


def _read(
    files: Sequence[InputFile], sample_bytes: int, how: dict[str, Any], what: str
) -> tuple[list[Document], Counter[str]]:
    sample, skipped = read_sample(files, sample_bytes, how)
    if not sample:
        raise InputError(f"{what} has no document with text of at most --sample-size {sample_bytes} bytes")
    return sample, skipped


def read_table(parent: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json as a table. Raises ConfigError unless it is byte-level BPE, which can take more merges."""
    path = parent.directory / TOKENIZER_FILE
    if not parent.is_byte_level:
        kind = type(parent.backend.model).__name__
        found = f"{kind} whose text or bytes are spelt in another way" if kind == "BPE" else kind
        raise ConfigError(f"{path}: only byte-level BPE can be extended, this is {found}; {OTHER_KIND}")
    table: dict[str, Any] = parse_as(read_bytes(path), dict[str, Any], str(path), error=ConfigError, remedy=OTHER_KIND)
    return table


def hold_out(sample: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return what to learn from, and every HELD_OUT_EVERY-th document to measure on; none of fewer documents."""
    held_out = sample[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [document for number, document in enumerate(sample, 1) if number % HELD_OUT_EVERY], list(held_out)


def count_units(parent: Tokenizer, documents: Sequence[Document]) -> tuple[Counter[bytes], int]:
    """Count what merges happen within: the pre-tokeniser's pieces of two ids and more, as the ids' int32 bytes.

    Returns also how many rare ones were forgotten to stay in bounds. Raises InputError for a document that the
    tokenizer refuses.
    """
    units: Counter[bytes] = Counter()
    forgotten, rare = 0, 1
    progress = Progress("encode", sum(len(document.text) for document in documents) / 1e6, "M characters")
    for batch in batches(documents):
        encodings = encode_documents(parent.backend, batch)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype="<i4")  # (tokens,)
        pieces = np.fromiter(chain.from_iterable(encoding.word_ids for encoding in encodings), dtype=np.int64)
        texts = np.repeat(np.arange(len(encodings)), [len(encoding.ids) for encoding in encodings])
        starts = np.flatnonzero((np.diff(pieces, prepend=-1) != 0) | (np.diff(texts, prepend=-1) != 0))
        ends = np.append(starts[1:], len(ids))
        several = ends - starts > 1
        data, bounds = ids.tobytes(), ID_BYTES * np.stack([starts, ends], axis=1)[several]
        units.update(data[start:end] for start, end in bounds.tolist())
        before = len(units)
        units, rare = forget_rare(units, rare)
        forgotten += before - len(units)
        progress.advance(sum(len(document.text) for document in batch) / 1e6)
    progress.close()
    return units, forgotten


def learn(parent: Tokenizer, units: Counter[bytes], add: int) -> list[NewToken]:
    """Return `add` new tokens in the order of their merges: most frequent pair first, the smaller ids on equal counts.

    Empties `units`. A pair that would be spelt as a token that is there, special ones too, is left alone. Raises
    ConfigError when the units give fewer.
    """
    symbols = np.frombuffer(b"".join(units), dtype="<i4").astype(np.int32)
    lengths = np.fromiter(map(len, units), dtype=np.int64, count=len(units)) // ID_BYTES
    counts = np.fromiter(units.values(), dtype=np.int64, count=len(units))
    units.clear()
    symbols, lengths, counts = _mergeable(parent, symbols, lengths, counts)
    vocabulary = parent.backend.get_vocab(with_added_tokens=True)
    spellings = sorted(vocabulary, key=vocabulary.__getitem__)
    taken, new = set(spellings), list[NewToken]()
    parts: list[tuple[int, ...]] = [(index,) for index in range(len(spellings))]
    progress: Progress | None = None  # from the first merge on: before, the pairs are sorted
    for merge, gain in extend_merges(
        symbols,
        lengths,
        counts,
        first=len(spellings),
        num_merges=add,
        min_count=MIN_PAIR_COUNT,
        is_taken=lambda left, right: spellings[left] + spellings[right] in taken,
    ):
        left, right = spellings[merge.left], spellings[merge.right]
        spellings.append(left + right)
        taken.add(left + right)
        parts.append(parts[merge.left] + parts[merge.right])
        new.append(NewToken(left, right, parts[-1], gain))
        progress = progress or Progress("merge", add, "tokens")
        progress.advance(1)
    if progress:
        progress.close()
    if len(new) < add:
        remedy = f"write --add {len(new)}, or give it more text" if new else "give it more text"
        seen = f"pairs of tokens that occur {MIN_PAIR_COUNT} times and more"
        raise ConfigError(f"--add {add}: the text gives only {len(new)} new ids ({seen}); {remedy}")
    return new


def _mergeable(
    parent: Tokenizer, symbols: np.ndarray, lengths: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the units without those that hold a token that no merge makes: an added one, or what is unknown."""
    can_merge = np.zeros(parent.vocab_size, dtype=bool)
    can_merge[list(parent.backend.get_vocab(with_added_tokens=False).values())] = True
    can_merge[list(parent.backend.get_added_tokens_decoder())] = False
    unknown = parent.backend.model.unk_token  # type: ignore[attr-defined]
    if unknown is not None and (index := parent.backend.token_to_id(unknown)) is not None:
        can_merge[index] = False
    if not len(lengths):
        return symbols, lengths, counts
    kept = np.logical_and.reduceat(can_merge[symbols], np.cumsum(lengths) - lengths)
    return symbols[np.repeat(kept, lengths)], lengths[kept], counts[kept]


def save(parent: Tokenizer, table: dict[str, Any], new: Sequence[NewToken], folder: Path) -> None:
    """Write tokenizer.json with the new tokens and merges behind the old ones, and copy what stays true beside it.

    Added tokens that stand behind the model's vocabulary go into it with the ids that they have: `tokenizers` numbers
    them by its size when it reads a file, so that they would move.
    """
    model = table["model"]
    vocab, merges = dict(model["vocab"]), list(model["merges"])
    for index, token in sorted(parent.backend.get_added_tokens_decoder().items()):
        vocab.setdefault(token.content, index)
    vocab |= {token.left + token.right: index for index, token in enumerate(new, parent.vocab_size)}
    as_text = bool(merges) and isinstance(merges[0], str)  # as older files have them
    merges += [f"{token.left} {token.right}" if as_text else [token.left, token.right] for token in new]
    write_json(folder / TOKENIZER_FILE, table | {"model": model | {"vocab": vocab, "merges": merges}})
    for name in BESIDE:
        if (parent.directory / name).is_file():
            write_bytes(folder / name, read_bytes(parent.directory / name))


def reloaded(parent: Tokenizer, folder: Path, parts: Sequence[tuple[int, ...]]) -> Tokenizer:
    """Return the tokenizer that was saved. Raises ConfigError when an old token has another id, role or encoding."""
    child = load_tokenizer(folder)
    old, found = (tokenizer.backend.get_vocab(with_added_tokens=True) for tokenizer in (parent, child))
    moved = [token for token, index in old.items() if found.get(token) != index]
    for added in parent.backend.get_added_tokens_decoder().values():  # they are in the model's vocabulary now
        if in_old_ids(child.encode(added.content), parent.vocab_size, parts) != parent.encode(added.content):
            moved.append(added.content)
    if moved or len(found) != len(old) + len(parts) or child.vocabulary.special != parent.vocabulary.special:
        said = f"{moved[0]!r} gets other ids" if moved else "its ids get other roles"
        raise ConfigError(f"{parent.directory / TOKENIZER_FILE}: cannot be extended, {said}; {OTHER_KIND}")
    return child


def record(
    parent: Tokenizer,
    child: Tokenizer,
    new: Sequence[NewToken],
    domain: Comparison,
    others: Comparison | None,
    *,
    held_out: int,
) -> dict[str, Any]:
    """Return extension.json's part that says what the new ids are and what they do."""
    return {
        "parent_fingerprint": parent.fingerprint,
        "parent_ids": parent.vocab_size,
        "parts": [list(token.parts) for token in new],
        "gains": [token.gain for token in new],
        "measures": report_values(
            child, [token.gain for token in new], domain, others, held_out=held_out, every=HELD_OUT_EVERY
        ),
    }
