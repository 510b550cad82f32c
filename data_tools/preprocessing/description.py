"""What a shard set says of itself: the manifest's entries on tokens and units, and the line at the end."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmbert.errors import InputError
from cmbert.files.reading import read_json
from cmbert.tokenizer import Tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.encoding.manifest import Tally, decontamination
from data_tools.encoding.segment import Segmenter
from data_tools.storage.files import InputFile

CLEAN_REPORT = "report.json"
MANY_UNKNOWN = 0.01  # share of the tokens

logger = logging.getLogger(__name__)


def describe(tokenizer: Tokenizer, words: Segmenter) -> dict[str, Any]:
    """Return the manifest's entries on what tokens and units mean."""
    vocabulary = tokenizer.vocabulary
    entry = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
    if vocabulary.special != list(range(len(SPECIAL_TOKENS))) or not tokenizer.is_byte_level:
        entry |= {"special_ids": [index for index in vocabulary.special if index != vocabulary.unk_id]}
    return {
        "tokenizer": entry,
        "segmenter": words.describe(),
        "normalizer": json.loads(tokenizer.backend.to_str())["normalizer"],
    }


def decontaminated(files: Sequence[InputFile]) -> dict[str, Any]:
    """Return the manifest's entry on evaluation sets, by the report.json of `clean` beside the texts."""
    folders = {file.parent if isinstance(file, Path) else None for file in files}  # none is looked for in a store
    return decontamination(_dropped_by_set(folder / CLEAN_REPORT) if folder else None for folder in folders)


def _dropped_by_set(path: Path) -> dict[str, int] | None:
    """Return the documents that `clean` dropped for each evaluation set; None where the file does not say it."""
    if not path.is_file():
        return None
    try:
        report = read_json(path)
        return {name: int(found["documents"]) for name, found in report["evaluation_sets"].items()}
    except (InputError, KeyError, TypeError, AttributeError, ValueError):  # somebody else's
        return None


class Made(NamedTuple):
    """What this call did; what an earlier one had done is not in it."""

    num_parts: int
    text_bytes: int
    seconds: float


def say_done(output: Path, tally: Tally, made: Made) -> None:
    """Say that a set is finished, and so if the tokenizer hardly knows its text."""
    print(f"{output}: {summary(tally, made)}")
    share = unknown_share(tally)
    if share is not None and share > MANY_UNKNOWN:
        logger.warning(
            "%s: %.1f %% of its tokens are unknown: the tokenizer cannot spell that text, and a model never sees it; "
            "was it made for text of this kind?",
            output,
            100 * share,
        )


def summary(tally: Tally, made: Made) -> str:
    """Return one line on a finished set."""
    tokens = tally.total("tokens")
    skipped = f", {tally.skipped.total():,} lines skipped" if tally.skipped else ""
    rate = f"{made.text_bytes / 1e6 / made.seconds:.1f} MB/s, " if made.num_parts else ""
    share = unknown_share(tally)
    unknown = "" if share is None else f", {100 * share:.2f} % of the tokens unknown"
    return (
        f"{tally.total('documents'):,} documents, {tokens:,} tokens{skipped}, {rate}"
        f"{tally.characters / tokens:.2f} characters per token, "
        f"{100 * tally.lost_boundaries() / max(tally.word_boundaries, 1):.1f} % of word boundaries inside a token"
        f"{unknown}"
    )


def unknown_share(tally: Tally) -> float | None:
    """Return which share of the tokens is [UNK]; None of a tokenizer that makes none."""
    return None if tally.unknown_tokens is None else tally.unknown_tokens / max(tally.total("tokens"), 1)
