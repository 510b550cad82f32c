"""`cmbert bench loader`: rows from memory-mapped shards to packed, whole-word-masked tensors, beside transformers."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from cmbert.bench.rows import Row, keep_rows
from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.packing import document_chunks, plan_blocks
from cmbert.data.reader import RowReader, open_reader
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.megatron import write_idx
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError
from cmbert.evaluate.domains import LEAST_CONTEXT
from cmbert.memory import resident_bytes
from cmbert.tokenizer import Tokenizer, load_tokenizer

ROUNDS = 3
MASK_RATE = 0.3
BATCH_TOKENS = 16_384  # row positions of a micro-batch
MOST_TOKENS = 30_000_000  # of ours in a round; a set with fewer is read through
PEER_TOKENS = 65_536
SHUFFLE_BLOCK_ROWS = 512


def bench_loader(data: Path, tokenizer_directory: Path, contexts: Sequence[int], plan_documents: int) -> list[Row]:
    """Time our loader and transformers' whole-word collator in turn on one core; return the rows and keep them.

    plan_documents: also plan the rows of a synthetic set of that many documents; 0 = do not.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    if wrong := [context for context in contexts if not LEAST_CONTEXT <= context <= PEER_TOKENS]:
        raise ConfigError(f"--lengths: {wrong[0]} must be from {LEAST_CONTEXT} to {PEER_TOKENS} tokens")
    rows = [row for context in contexts for row in _beside_transformers(data, tokenizer, context)]
    if plan_documents:
        rows += [_plan_row(plan_documents, context) for context in contexts]
    keep_rows("loader", rows)
    return rows


def _beside_transformers(data: Path, tokenizer: Tokenizer, context: int) -> Iterator[Row]:
    ours, theirs, fill = [], [], []
    collate = _whole_word_collator(tokenizer, _reader(data, tokenizer, context), context)
    for number in range(ROUNDS + 1):
        reader = _reader(data, tokenizer, context)  # a new one has packed nothing yet
        seconds, tokens, positions = _read_through(reader, context)
        peer_seconds, peer_tokens = collate()
        if number:  # the first round compiles, and brings the files into memory
            ours.append(tokens / seconds)
            theirs.append(peer_tokens / peer_seconds)
            fill.append(tokens / positions)
    rate, peer = statistics.median(ours), statistics.median(theirs)
    work = f"load rows of {context}, whole words masked"
    yield {"work": work, "peer": "transformers, whole-word collator", "tokens_per_second": round(peer)}
    yield {
        "work": work,
        "peer": "cmbert",
        "tokens_per_second": round(rate),
        "ratio": round(rate / peer, 1),
        "fill_rate": round(statistics.median(fill), 4),
        "anonymous_mb": round(resident_bytes("RssAnon") / 1e6),
    }


def _reader(data: Path, tokenizer: Tokenizer, context: int) -> RowReader:
    config = DataConfig(
        tokenizer=str(tokenizer.directory),
        sources=(SourceConfig(path=str(data)),),
        context_tokens=context,
        shuffle_block_rows=SHUFFLE_BLOCK_ROWS,
    )
    return open_reader(config, MaskConfig(), tokenizer, seed=0)


def _read_through(reader: RowReader, context: int) -> tuple[float, int, int]:
    """Return seconds, tokens and row positions of a pass over the rows."""
    batch_rows = max(1, BATCH_TOKENS // context)
    num_rows = min(reader.blend.sources[0].num_rows, MOST_TOKENS // context)
    started, tokens = time.perf_counter(), 0
    for first in range(0, num_rows, batch_rows):
        batch = reader.micro_batch(range(first, min(first + batch_rows, num_rows)), MASK_RATE)
        tokens += int(torch.count_nonzero(batch.input_ids != reader.vocabulary.pad_id))
    return time.perf_counter() - started, tokens, num_rows * context


def _whole_word_collator(tokenizer: Tokenizer, reader: RowReader, context: int) -> Callable[[], tuple[float, int]]:
    """Return a run of transformers' collator over rows that lie in memory already, their words told by offsets."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    theirs = AutoTokenizer.from_pretrained(tokenizer.directory)
    collator = DataCollatorForLanguageModeling(
        theirs, mlm_probability=MASK_RATE, whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    examples = []
    for row in range(min(PEER_TOKENS // context, reader.blend.sources[0].num_rows)):
        assembled = reader.assemble([row])
        ids = np.full(context, tokenizer.vocabulary.ordinary[0])  # the collator stacks rows of one length
        ids[: len(assembled.ids)] = assembled.ids
        starts = np.ones(context, bool)
        starts[: len(assembled.ids)] = assembled.unit_starts
        begins = 2 * np.arange(context)
        ends = begins + np.where(np.append(starts[1:], True), 1, 2)  # a gap before the next token ends a word
        special = (~tokenizer.vocabulary.is_ordinary[ids]).astype(int).tolist()
        offsets = np.stack([begins, ends], axis=1).tolist()
        examples.append({"input_ids": ids.tolist(), "special_tokens_mask": special, "offset_mapping": offsets})
    batch_rows = max(1, BATCH_TOKENS // context // 4)  # it compares every token with every other
    batches = [examples[first : first + batch_rows] for first in range(0, len(examples), batch_rows)]

    def run() -> tuple[float, int]:
        started = time.perf_counter()
        for batch in batches:
            collator([dict(example) for example in batch])
        return time.perf_counter() - started, len(examples) * context

    return run


def _plan_row(num_documents: int, context: int) -> Row:
    """Plan a synthetic set whose .bin is a hole of the right size: the plan reads lengths only."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        lengths = np.maximum(np.random.default_rng(0).lognormal(6.0, 1.2, num_documents), 1).astype("<i4")
        tokens = int(lengths.sum(dtype=np.int64))
        write_idx(directory / "00000.idx", lengths, token_dtype(32_768))
        del lengths
        for suffix, size in (("bin", 2 * tokens), ("words", -(-tokens // 8))):
            with open(directory / f"00000.{suffix}", "wb") as file:
                file.truncate(size)
        sizes = {suffix: (directory / f"00000.{suffix}").stat().st_size for suffix in ("bin", "idx", "words")}
        entry = {"name": "00000", "documents": num_documents, "tokens": tokens, "units": tokens}
        entry |= {"bytes": sizes, "blake2b": dict.fromkeys(sizes, "")}
        write_manifest(directory, {"tokenizer": {"fingerprint": "", "vocab_size": 32_768}, "shards": [entry]})
        shards = ShardSet(directory)
        started = time.perf_counter()
        plan = plan_blocks(document_chunks(shards), context, SHUFFLE_BLOCK_ROWS)
        seconds = time.perf_counter() - started
    return {
        "work": f"plan {num_documents:,} documents, {tokens / 1e9:.1f}B tokens, rows of {context}",
        "peer": "cmbert",
        "documents_per_second": round(num_documents / seconds),
        "plan_mb": round((plan.starts.nbytes + plan.rows.nbytes) / 1e6, 2),
        "anonymous_mb": round(resident_bytes("RssAnon") / 1e6),
    }
