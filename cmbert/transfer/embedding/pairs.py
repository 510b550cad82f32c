"""Readers of sentence pairs: SimCLUE, natural language inference, graded similarity. Every fault names file and line.

Formats, all UTF-8:
    SimCLUE pairs      JSON lines {"sentence1", "sentence2", "label": "1" | "0"}    github.com/CLUEbenchmark/SimCLUE
    SimCLUE triplets   JSON lines {"query", "title", "neg_title"}                   the same
    inference          JSON lines {"sentence1", "sentence2", "label": entailment | neutral | contradiction | -}   OCNLI
    similarity         JSON lines {"sentence1", "sentence2", "score" or "label": number}, or the same three columns with
                       tabs, or Chinese STS-B's four: id||sentence1||sentence2||score
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmbert.errors import InputError
from cmbert.files.reading import checked_text, json_lines, lines_of, shown

TRIPLET_KEYS = ("query", "title", "neg_title")
PAIR_KEYS = ("sentence1", "sentence2", "label")
NLI_LABELS = ("entailment", "neutral", "contradiction", "-")  # "-": OCNLI's annotators did not agree
LABELS = {"0": 0, "1": 1}


class Pair(NamedTuple):
    """Two texts that mean the same or answer each other and, where there is one, a text that does not."""

    anchor: str
    positive: str
    negative: str | None = None


class Graded(NamedTuple):
    """Two texts and how much they mean the same: 0 or 1 in SimCLUE, 0 to 1 in graded similarity."""

    first: str
    second: str
    grade: float


@dataclass(frozen=True)
class PairFile:
    """What one file of pairs gave."""

    pairs: list[Pair]
    is_triplets: bool
    """The format is SimCLUE's query, title, neg_title."""
    note: str
    """What was left out and why, for the log; empty if nothing."""


def read_pairs(path: Path) -> PairFile:
    """Read SimCLUE pairs or triplets; the first line says which. Equal pairs are kept once.

    Label-0 pairs hold nothing that belongs together, so none is trained on; the second text of one is the hard negative
    of a label-1 pair that has the same first text. A pair of twice the same text, or a negative that is one of its
    pair's texts, teaches nothing true and is left out. Raises InputError on a malformed line.
    """
    is_triplets = next(_json_lines(path))[1].keys() >= set(TRIPLET_KEYS)
    pairs, unused = ([Pair(*texts) for texts in _read_triplets(path)], 0) if is_triplets else _read_labelled(path)
    unlike = [pair for pair in pairs if pair.anchor != pair.positive]
    unique = {(p.anchor, p.positive): _without_false_negative(p) for p in reversed(unlike)}
    kept = [unique[key] for key in dict.fromkeys((p.anchor, p.positive) for p in unlike)]
    if not kept:
        raise InputError(f"{path}: no pair with label 1; give a file that has some")
    dropped = {"of equal texts": len(pairs) - len(unlike), "repeated": len(unlike) - len(kept)}
    return PairFile(kept, is_triplets, _note(dropped | {"of label 0 that are no pair's negative": unused}))


def _note(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count)


def _without_false_negative(pair: Pair) -> Pair:
    return pair._replace(negative=None) if pair.negative in (pair.anchor, pair.positive) else pair


def _read_triplets(path: Path) -> Iterator[tuple[str, ...]]:
    for where, record in _json_lines(path):
        yield tuple(_text(where, record, key) for key in TRIPLET_KEYS)


def _read_labelled(path: Path) -> tuple[list[Pair], int]:
    """Return the pairs of label 1 with negatives, and how many of label 0 are none of them."""
    labelled = read_labelled(path)
    negatives: dict[str, list[str]] = defaultdict(list)
    for first, second, label in labelled:
        if label == 0:
            negatives[first].append(second)
    taken = {first: itertools.cycle(seconds) for first, seconds in negatives.items()}
    pairs = [Pair(a, b, next(taken[a]) if a in taken else None) for a, b, label in labelled if label == 1]
    asked = Counter(pair.anchor for pair in pairs)
    return pairs, sum(max(len(seconds) - asked[first], 0) for first, seconds in negatives.items())


def read_labelled(path: Path) -> list[Graded]:
    """Read SimCLUE pairs with their labels, 0 or 1, as SimCLUE's test set is. Raises InputError on a malformed line."""
    rows = []
    for where, record in _json_lines(path):
        first, second = (_text(where, record, key) for key in PAIR_KEYS[:2])
        label = _value(where, record, "label")
        if isinstance(label, bool) or str(label) not in LABELS:
            raise InputError(f"{where}: label is {shown(label)}; it must be 0 or 1")
        rows.append(Graded(first, second, LABELS[str(label)]))
    return rows


def read_inference(path: Path) -> PairFile:
    """Read premise and hypothesis: an entailed one is the positive, one that contradicts the same premise the negative.

    Neutral ones are left out. Raises InputError on a malformed line or if nothing is entailed.
    """
    by_label: dict[str, dict[str, list[str]]] = {label: defaultdict(list) for label in NLI_LABELS}
    for where, record in _json_lines(path):
        premise, hypothesis = (_text(where, record, key) for key in PAIR_KEYS[:2])
        label = _value(where, record, "label")
        if not isinstance(label, str) or label not in by_label:
            raise InputError(f"{where}: label is {shown(label)}; it must be one of {', '.join(NLI_LABELS)}")
        by_label[label][premise].append(hypothesis)
    pairs: dict[tuple[str, str], Pair] = {}
    contradicted, equal = by_label["contradiction"], 0
    unused = sum(max(len(texts) - len(by_label["entailment"][first]), 0) for first, texts in contradicted.items())
    for premise, entailed in by_label["entailment"].items():
        against = itertools.cycle(contradicted.get(premise, [None]))
        equal += entailed.count(premise)
        for hypothesis in entailed:
            if hypothesis != premise:
                pair = Pair(premise, hypothesis, next(against))
                pairs.setdefault((premise, hypothesis), _without_false_negative(pair))
    if not pairs:
        raise InputError(f"{path}: no line with label entailment; give a file that has some")
    dropped = {
        "neutral or undecided": sum(len(texts) for label in ("neutral", "-") for texts in by_label[label].values()),
        "of equal texts": equal,
        "repeated": sum(map(len, by_label["entailment"].values())) - equal - len(pairs),
        "contradictions that are no pair's negative": unused,
    }
    return PairFile(list(pairs.values()), is_triplets=False, note=_note(dropped))


def read_similarity(path: Path) -> list[Graded]:
    """Read graded pairs; grades come back from 0 to 1: divided by 5, STS-B's best, if any in the file exceeds 1.

    Raises InputError on a malformed line or a grade outside 0 to 5.
    """
    rows = []
    for where, first, second, score in _similarity_lines(path):
        try:
            grade = math.nan if isinstance(score, bool) else float(score)
        except (TypeError, ValueError, OverflowError):
            grade = math.nan
        if not 0 <= grade <= 5:
            raise InputError(f"{where}: score is {shown(score)}; it must be a number from 0 to 5")
        rows.append(Graded(first, second, grade))
    if not rows:
        raise InputError(f"{path}: only a header")
    scale = 5 if max(row.grade for row in rows) > 1 else 1
    return [row._replace(grade=row.grade / scale) for row in rows]


def _similarity_lines(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    header, first = next(lines_of(path))
    if first.lstrip().startswith("{"):
        for where, record in _json_lines(path):
            one, other = (_text(where, record, key) for key in PAIR_KEYS[:2])
            yield where, one, other, _value(where, record, "score" if "score" in record else "label")
        return
    for number, line in lines_of(path):
        where = f"{path}:{number}"
        columns = line.split("||")[1:] if line.count("||") == 3 else line.split("\t")
        if len(columns) != 3:
            raise InputError(
                f"{where}: not a graded pair; write JSON with sentence1, sentence2, score, or three columns "
                "with tabs between them"
            )
        if number == header and columns[:2] == ["sentence1", "sentence2"]:
            continue
        for text in columns[:2]:
            if not text.strip():
                raise InputError(f"{where}: empty sentence; remove the line")
        yield where, columns[0], columns[1], columns[2].strip()


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from json_lines(path)
    except InputError as error:
        hint = (
            f"; write one object per line, such as {_example(PAIR_KEYS)}" if "not a JSON object" in str(error) else ""
        )
        raise InputError(f"{error}{hint}") from error


def _value(where: str, record: dict[str, Any], key: str) -> Any:
    if key not in record:
        names = shown(", ".join(map(repr, record)) or "nothing")[1:-1]
        raise InputError(
            f"{where}: no {key!r}, but {names}; lines must be like "
            f"{_example(TRIPLET_KEYS if key in TRIPLET_KEYS else PAIR_KEYS)}"
        )
    return record[key]


def _text(where: str, record: dict[str, Any], key: str) -> str:
    return checked_text(_value(where, record, key), key, where)


def _example(keys: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{key}": ...' for key in keys) + "}"
