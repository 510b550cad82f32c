"""`inspect`: what is in a shard set: counts, histograms as bars, one document with its units marked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError
from cmbert.tokenizer import Tokenizer
from data_tools.encoding.manifest import whole_manifest

BAR_CHARACTERS = 40
COLOURS = ("\x1b[36m", "\x1b[33m")  # cyan and yellow, unit by unit
COLOUR_END = "\x1b[0m"


def describe(directory: Path) -> str:
    """Return counts, sources and histograms of a shard set, several lines. Raises ShardError."""
    manifest = whole_manifest(directory)
    totals, straddle, segmenter = manifest["totals"], manifest["straddle"], manifest["segmenter"]
    per_token = totals["characters"] / max(totals["tokens"], 1)
    lines = [
        f"{directory}: {len(manifest['shards'])} shards, {totals['documents']:,} documents, "
        f"{totals['tokens']:,} tokens, {totals['units']:,} units, {totals['text_bytes'] / 1e6:,.2f} MB of text",
        f"tokenizer {manifest['tokenizer']['fingerprint']} ({manifest['tokenizer']['vocab_size']:,} ids), "
        f"{per_token:.2f} characters per token",
        f"words by {segmenter['name']} {segmenter['version']}; {straddle['lost']:,} of {straddle['word_boundaries']:,} "
        f"word boundaries inside a token ({100 * straddle['rate']:.1f} %)",
    ]
    if (unknown := totals.get("unknown_tokens")) is not None:
        share = 100 * unknown / max(totals["tokens"], 1)
        lines.append(f"{unknown:,} tokens are unknown: text that the tokenizer cannot spell ({share:.2f} %)")
    for name, counts in manifest["sources"].items():
        lines.append(f"  source {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    for reason, number in manifest["skipped_lines"].items():
        lines.append(f"  skipped: {number:,} lines ({reason})")
    lines += ["token length, characters that begin in it:", *bars(manifest["token_length_histogram"]["counts"])]
    lines += ["unit length, characters:", *bars(manifest["unit_length_histogram"]["counts"])]
    return "\n".join(lines)


def bars(counts: Sequence[int]) -> list[str]:
    """Return a line with a bar for each length that occurs; the last entry stands for that length or more."""
    total, largest = sum(counts), max(counts)
    lines = []
    for length, count in enumerate(counts):
        if count:
            label = f"{length}+" if length == len(counts) - 1 else str(length)
            bar = "█" * max(1, round(BAR_CHARACTERS * count / largest))
            lines.append(f"  {label:>4} {100 * count / total:5.1f} % {bar}")
    return lines


def show_document(directory: Path, number: int, tokenizer: Tokenizer | None, colour: bool) -> str:
    """Return one document with its units marked: coloured in turn, or between bars.

    Text when the tokenizer is given, else token ids. Raises ConfigError for a number or tokenizer of another set.
    """
    shards = ShardSet(directory)
    if not 0 <= number < shards.num_documents:
        raise ConfigError(f"--document {number}: {directory} has documents 0 to {shards.num_documents - 1}")
    if tokenizer is not None and tokenizer.fingerprint != shards.tokenizer_fingerprint:
        raise ConfigError(f"{tokenizer.directory}: not the tokenizer of {directory} ({shards.tokenizer_fingerprint})")
    tokens, unit_starts = shards.read(number)
    units = [unit.tolist() for unit in np.split(tokens, np.flatnonzero(unit_starts)[1:])]
    if tokenizer is None:
        texts = [" ".join(map(str, unit)) for unit in units]
    else:
        before = [[], *(unit[-1:] for unit in units[:-1])]
        texts = [tokenizer.decode_after(*pair) for pair in zip(before, units, strict=True)]
    if not colour:
        return "|".join(texts)
    separator = " " if tokenizer is None else ""
    return separator.join(COLOURS[index % 2] + text + COLOUR_END for index, text in enumerate(texts))
