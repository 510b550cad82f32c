"""`verify`: every fault of a shard set. With the hashes, a flipped bit in any of its files is found."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.data.shards.layout import SHARD_SUFFIXES, token_dtype
from cmbert.data.shards.manifest import MANIFEST_FILE, check_size, read_manifest
from cmbert.data.shards.megatron import IDX_HEADER, read_idx
from cmbert.data.shards.shard_set import COUNT_BLOCK_TOKENS, ShardSet
from cmbert.errors import ConfigError, ShardError
from cmbert.files.operations import hash_file
from cmbert.tokenizer import Tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.encoding.encode import NO_TOKENS, NOT_ENCODABLE, DocumentEncoder
from data_tools.encoding.manifest import SEAL, Tally, seal, whole_fault
from data_tools.input.document import Document
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files

SAMPLED_DOCUMENTS = 64  # decoded and encoded again when the tokenizer is given
FEWEST_TOKENS_TO_JUDGE = 1_000  # in less text every token may be a unit honestly
AGAIN = "remove the set and preprocess again"  # as long as it is there, preprocess says that it is done
EXIT_FAULTS = 1  # exit code of a shard set with faults

logger = logging.getLogger(__name__)


def print_faults(directory: Path, *, quick: bool, tokenizer: Tokenizer | None, source: Sequence[str]) -> int:
    """Print what `find_faults` finds, each fault as it is found, then their number; return it."""
    num_faults = 0
    for fault in find_faults(directory, quick=quick, tokenizer=tokenizer, source=source):
        print(fault)
        num_faults += 1
    print(f"{directory}: {num_faults} faults" if num_faults else f"{directory}: sound")
    return num_faults


def find_faults(
    directory: Path, *, quick: bool = False, tokenizer: Tokenizer | None = None, source: Sequence[str] = ()
) -> Iterator[str]:
    """Yield every fault of the shard set, one line each; none if it is sound.

    quick: sizes instead of hashes. tokenizer: also compare its fingerprint, and encode and segment sampled documents
    again. source: the input it was made from, to compare sampled documents with; needs the tokenizer. Memory is bounded
    by one shard's index. Raises ConfigError for a source without a tokenizer, InputError for a source that is unusable.
    """
    if source and tokenizer is None:
        raise ConfigError("--input: give the --tokenizer too: documents are compared as text")
    try:
        manifest = read_manifest(directory)
    except ShardError as error:
        yield str(error)
        return
    if manifest.get(SEAL) != seal(manifest):
        yield f"{directory / MANIFEST_FILE}: changed since it was written (its {SEAL} does not match); {AGAIN}"
        return  # nothing it says can be relied on
    if fault := whole_fault(manifest):
        yield f"{directory / MANIFEST_FILE}: {fault}; {AGAIN}"
        return
    torn = False
    for shard in manifest["shards"]:
        faults = list(shard_faults(directory, shard, manifest["tokenizer"], quick))
        torn = torn or bool(faults)
        yield from faults
    yield from stray_file_faults(directory, manifest)
    yield from count_faults(directory, manifest)
    if tokenizer is None:
        return
    if tokenizer.fingerprint != manifest["tokenizer"]["fingerprint"]:
        yield f"{directory}: made with tokenizer {manifest['tokenizer']['fingerprint']}, not {tokenizer.fingerprint}"
    elif not torn:
        yield from document_faults(directory, manifest, tokenizer, source)


def shard_faults(directory: Path, shard: dict[str, Any], tokenizer: dict[str, Any], quick: bool) -> Iterator[str]:
    """Yield the faults of one shard's files."""
    paths = {suffix: directory / f"{shard['name']}.{suffix}" for suffix in SHARD_SUFFIXES}
    torn = False
    for suffix, path in paths.items():
        try:
            check_size(path, shard["bytes"][suffix])
        except ShardError as error:
            torn = True
            yield str(error)
            continue
        if not quick and hash_file(path) != shard["blake2b"][suffix]:
            yield f"{path}: its hash is not the manifest's: changed since it was written; {AGAIN}"
    if torn:
        return
    try:
        lengths, starts, dtype = read_idx(paths["idx"])
    except ShardError as error:
        yield str(error)
        return
    index_is_sound = True
    for fault in index_faults(paths["idx"], shard, lengths, starts, dtype, tokenizer["vocab_size"]):
        index_is_sound = False
        yield fault
    if index_is_sound:
        special_ids = tokenizer.get("special_ids", range(len(SPECIAL_TOKENS)))
        yield from token_faults(paths["bin"], dtype, tokenizer["vocab_size"], special_ids)
        yield from unit_faults(paths["words"], shard, starts)


def index_faults(
    path: Path, shard: dict[str, Any], lengths: np.ndarray, starts: np.ndarray, dtype: np.dtype, vocab_size: int
) -> Iterator[str]:
    """Yield disagreements inside an index, and between it and the manifest. lengths, starts: (documents,) tokens."""
    if dtype != token_dtype(vocab_size):
        yield f"{path}: ids of {dtype.itemsize} bytes, a vocabulary of {vocab_size} takes {token_dtype(vocab_size)}"
    if len(lengths) != shard["documents"]:
        yield f"{path}: {len(lengths)} documents, the manifest says {shard['documents']}"
    if lengths.min(initial=1) < 1:
        yield f"{path}: {np.count_nonzero(lengths < 1)} documents without tokens"
    if lengths.sum() != shard["tokens"] or lengths.sum() * dtype.itemsize != shard["bytes"]["bin"]:
        yield f"{path}: {lengths.sum()} tokens, the manifest says {shard['tokens']}"
    if not np.array_equal(starts, np.cumsum(lengths) - lengths):
        yield f"{path}: pointers are not the sums of the lengths before them"
    bounds = np.fromfile(path, "<i8", offset=IDX_HEADER.size + 12 * len(lengths))
    if not np.array_equal(bounds, np.arange(len(lengths) + 1)):
        yield f"{path}: document bounds are not 0, 1, 2, ..."


def token_faults(path: Path, dtype: np.dtype, vocab_size: int, special_ids: Sequence[int]) -> Iterator[str]:
    """Yield ids outside the vocabulary and special tokens, counted."""
    tokens = np.memmap(path, dtype=dtype, mode="r")
    too_large = special = np.int64(0)
    is_special = np.zeros(vocab_size + 1, dtype=bool)
    is_special[list(special_ids)] = True
    for first in range(0, len(tokens), COUNT_BLOCK_TOKENS):
        block = tokens[first : first + COUNT_BLOCK_TOKENS]
        too_large += np.count_nonzero(block >= vocab_size)
        special += np.count_nonzero(is_special[np.clip(block, 0, vocab_size)])
    if too_large:
        yield f"{path}: {too_large} ids outside the vocabulary of {vocab_size}"
    if special:
        yield f"{path}: {special} special tokens; shards hold none"


def unit_faults(path: Path, shard: dict[str, Any], starts: np.ndarray) -> Iterator[str]:
    """Yield faults of the unit bits. starts: first token of each document, shape (documents,)."""
    words = np.memmap(path, dtype=np.uint8, mode="r")
    if len(words) != (shard["tokens"] + 7) // 8:
        yield f"{path}: {len(words)} bytes for {shard['tokens']} tokens, one bit each"
        return
    blocks = range(0, len(words), COUNT_BLOCK_TOKENS // 8)
    units = sum(int(np.unpackbits(words[first : first + COUNT_BLOCK_TOKENS // 8]).sum()) for first in blocks)
    if units != shard["units"]:
        yield f"{path}: {units} units, the manifest says {shard['units']}"
    inside = np.count_nonzero((words[starts >> 3] >> (starts & 7) & 1) == 0)
    if inside:
        yield f"{path}: {inside} documents begin inside a unit"
    if shard["tokens"] % 8 and words[-1] >> (shard["tokens"] % 8):
        yield f"{path}: bits set after the last token"


def stray_file_faults(directory: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield files that look like shards and are not the manifest's."""
    listed = {f"{shard['name']}.{suffix}" for shard in manifest["shards"] for suffix in SHARD_SUFFIXES}
    for path in sorted(directory.iterdir()):
        if path.suffix[1:] in SHARD_SUFFIXES and path.name not in listed:
            yield f"{path}: not in the manifest; remove it"


def count_faults(directory: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield disagreements among the manifest's own counts and histograms."""
    path, totals, tally = directory / MANIFEST_FILE, manifest["totals"], Tally.from_manifest(manifest)
    for count in ("documents", "tokens", "units"):
        in_shards = sum(shard[count] for shard in manifest["shards"])
        if in_shards != totals[count]:
            yield f"{path}: {in_shards} {count} in the shards, {totals[count]} in the totals"
    for count in ("documents", "tokens", "text_bytes"):
        if tally.total(count) != totals[count]:
            yield f"{path}: {tally.total(count)} {count} in the sources, {totals[count]} in the totals"
    for name, lengths, count in (("token", tally.token_lengths, "tokens"), ("unit", tally.unit_lengths, "units")):
        if lengths.sum() != totals[count]:
            yield f"{path}: the {name}-length histogram holds {lengths.sum()} of {totals[count]} {count}"
        if (np.arange(len(lengths)) * lengths).sum() > totals["characters"]:
            yield f"{path}: the {name}-length histogram holds more than the {totals['characters']} characters"
    if (tally.unknown_tokens or 0) > totals["tokens"]:
        yield f"{path}: {tally.unknown_tokens} unknown tokens of {totals['tokens']}"
    if tally.lost_boundaries() != manifest["straddle"]["lost"] or tally.lost_boundaries() < 0:
        yield f"{path}: word boundaries, units and documents do not add up to the lost boundaries"
    if totals["units"] == totals["tokens"] >= FEWEST_TOKENS_TO_JUDGE and manifest["segmenter"]:
        yield f"{path}: word ids silently one per token: every token begins a unit in spite of the word segmenter"


def document_faults(
    directory: Path, manifest: dict[str, Any], tokenizer: Tokenizer, source: Sequence[str]
) -> Iterator[str]:
    """Yield sampled documents whose tokens or units are not those of their text, or whose text is not the source's.

    Tokens that do not spell their text do not give it back; they are compared with those of the source's text.
    """
    shards = ShardSet(directory)
    sampled = np.unique(np.linspace(0, shards.num_documents - 1, SAMPLED_DOCUMENTS, dtype=np.int64)).tolist()
    encoder = DocumentEncoder(tokenizer.directory, "auto")
    same_words = encoder.segmenter.describe()["dictionary_hash"] == manifest["segmenter"]["dictionary_hash"]
    if not same_words:
        logger.info("%s: its words come from another dictionary than the one installed: units not compared", directory)
    if not tokenizer.is_byte_level:
        if source:
            yield from lossy_source_faults(shards, encoder, source, set(sampled), same_words)
        else:
            logger.info(
                "%s: documents not compared, for its tokenizer loses some text; add --input with the text", directory
            )
        return
    texts: dict[int, str] = {}
    for document in sampled:
        tokens, unit_starts = shards.read(document)
        texts[document] = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        again = encoder([Document("", "", texts[document])])
        if again.refused:
            yield f"{directory}: document {document} cannot be encoded again ({again.refused[0][1]})"
        elif not np.array_equal(again.tokens, tokens):
            yield f"{directory}: document {document} does not come back from its text: not this tokenizer's tokens"
        elif same_words and not np.array_equal(again.unit_starts, unit_starts):
            yield f"{directory}: document {document}: its units are not those of its words"
    if source:
        yield from source_faults(shards, encoder, source, texts)


def source_faults(
    shards: ShardSet, encoder: DocumentEncoder, source: Sequence[str], texts: dict[int, str]
) -> Iterator[str]:
    """Yield documents (by number, in `texts`) that differ from the source's, and a difference in their number."""
    number = -1
    for number, document in enumerate(encodable(shards.manifest, encoder, source)):
        if number in texts and texts[number] != encoder.prepare(document.text):
            yield f"{shards.path}: document {number} is not the source's {document.id}"
    yield from number_faults(shards, number + 1)


def lossy_source_faults(
    shards: ShardSet, encoder: DocumentEncoder, source: Sequence[str], sampled: set[int], same_words: bool
) -> Iterator[str]:
    """Yield `sampled` documents whose tokens or units are not those of the source's, and a difference in number."""
    number = -1
    for number, document in enumerate(encodable(shards.manifest, encoder, source)):
        if number not in sampled or number >= shards.num_documents:
            continue
        tokens, unit_starts = shards.read(number)
        again = encoder([document])
        if again.refused:
            yield f"{shards.path}: the source's {document.id} cannot be encoded again ({again.refused[0][1]})"
        elif not np.array_equal(again.tokens, tokens):
            yield f"{shards.path}: document {number} has not the tokens of the source's {document.id}"
        elif same_words and not np.array_equal(again.unit_starts, unit_starts):
            yield f"{shards.path}: document {number}: its units are not those of its words"
    yield from number_faults(shards, number + 1)


def encodable(manifest: dict[str, Any], encoder: DocumentEncoder, source: Sequence[str]) -> Iterator[Document]:
    """Yield the source's documents but those that preprocess counts and leaves out."""
    keys = ("text_key", "on_bad_line", "txt_document")
    how = {key: manifest["settings"][key] for key in keys if key in manifest["settings"]}
    reader = DocumentReader(whole_files(input_files(source)), **how, has_options=False)
    # Seldom: then all are encoded again to know which.
    some_left_out = not {NOT_ENCODABLE, NO_TOKENS}.isdisjoint(manifest["skipped_lines"])
    for document in reader:
        text = encoder.prepare(document.text)
        if text and not (some_left_out and not encoder.encoder.encode([text]).ids.size):
            yield document


def number_faults(shards: ShardSet, number: int) -> Iterator[str]:
    """Yield a difference between the set's number of documents and the source's."""
    if number != shards.num_documents:
        yield f"{shards.path}: {shards.num_documents} documents, the source has {number}"
