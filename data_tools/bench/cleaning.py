"""`clean` beside datatrove's own pipeline of the same steps, in UTF-8 bytes of text per second of one core."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.bench.text import Bench
from data_tools.bench.timing import PACKAGES, Row, beside

CPU = "MB of text per CPU second, one core"
PEER = "datatrove: Gopher's filters and MinHash of characters"


def bench_clean(bench: Bench) -> Iterator[Row]:
    """Raw text to signatures, and to what is written.

    The peer does what is nearest for text without spaces, and less: reads JSON lines, judges by Gopher's rules for
    quality and repetition with characters for words, signs with as many hashes of as long runs, finds duplicates and
    writes zstd. It normalises nothing, takes nothing for mojibake, and looks for near duplicates alone.
    """
    texts = bench.slow_texts()
    slow = bench.fresh().with_suffix(".jsonl")
    slow.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    slow_size = sum(len(text.encode("utf-8")) for text in texts)
    how: dict[str, Any] = {"clock": time.process_time, "packages": (*PACKAGES, "numba", "datatrove")}
    sign(bench.corpus)  # compiled before it is timed
    for work, theirs, ours in (
        ("clean: text to signatures", lambda: their_signatures(slow, bench.fresh()), lambda: sign(bench.corpus)),
        (
            "clean: text to output",
            lambda: their_output(slow, bench.fresh()),
            lambda: clean_all(bench.corpus, bench.fresh()),
        ),
    ):
        for row in beside(work, (PEER, slow_size, theirs), (bench.num_bytes, ours), **how):
            yield {**row, "unit": CPU}


def sign(corpus: Path) -> None:
    """Read, judge, normalise and sign, and keep nothing."""
    from data_tools.clean.config import CleanConfig
    from data_tools.clean.duplicates.minhash import Signer, text_key
    from data_tools.clean.judge import Judge
    from data_tools.input.readers import DocumentReader, whole_files

    config = CleanConfig()
    judge, signer = Judge(config), Signer(config.duplicates)
    for document in filter(None, map(judge, DocumentReader(whole_files([corpus])))):
        text_key(document.text.encode("utf-8"))
        signer(document.text)


def clean_all(corpus: Path, output: Path) -> None:
    """`clean` of one input in this process."""
    from data_tools.clean.clean import clean
    from data_tools.clean.config import CleanConfig

    clean([str(corpus)], output, config=CleanConfig())


def their_signatures(corpus: Path, folder: Path) -> None:
    """datatrove's MinHash of what Gopher's filters keep."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    config, words = minhash_config(), characters()
    _execute([*_kept(corpus), MinhashDedupSignature(str(folder / "signatures"), config, language=words)], folder)


def their_output(corpus: Path, folder: Path) -> None:
    """All four stages of datatrove's search for near duplicates."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    config = minhash_config()
    their_signatures(corpus, folder)
    signatures, buckets, removed = (str(folder / name) for name in ("signatures", "buckets", "removed"))
    _execute([MinhashDedupBuckets(signatures, buckets, config=config)], folder, tasks=config.num_buckets)
    _execute([MinhashDedupCluster(buckets, removed, config=config)], folder)
    writer = JsonlWriter(str(folder / "texts"), "${rank}.jsonl.zst", compression="zstd")
    _execute([*_kept(corpus), MinhashDedupFilter(removed), writer], folder)


def minhash_config() -> Any:
    """Return datatrove's configuration of our numbers; SHA-1, as its xxhash refuses text with xxhash 4."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    from data_tools.clean.config import DuplicatesConfig

    ours = DuplicatesConfig()
    return MinhashConfig(
        n_grams=ours.shingle_characters,
        num_buckets=ours.num_buckets,
        hashes_per_bucket=ours.hashes_per_bucket,
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )


def characters() -> Any:
    """Return a tokenizer whose words are characters; datatrove's for Chinese is spaCy with jieba, and slower."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Characters(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return text.split("\n")

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(index, index + 1) for index in range(len(text))]

    return Characters()


def _kept(corpus: Path) -> list[Any]:
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader

    words = characters()
    lengths = {"min_avg_word_length": None, "max_doc_words": 2_000_000, "min_doc_words": 20, "min_stop_words": None}
    return [
        JsonlReader(str(corpus.parent), glob_pattern=corpus.name),
        GopherRepetitionFilter(language=words),
        GopherQualityFilter(language=words, **lengths),
    ]


def _execute(steps: list[Any], folder: Path, tasks: int = 1) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.disable("datatrove")
    LocalPipelineExecutor(steps, tasks=tasks, workers=1, skip_completed=False, logging_dir=str(folder / "logs")).run()
