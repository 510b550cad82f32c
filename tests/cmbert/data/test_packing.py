"""Rows: every token once per epoch, full rows, cuts at sentence ends, a pure function of the seed."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.data.best_fit import best_fit
from cmbert.data.kernels import cut_document
from cmbert.data.packing import SourceRows, plan_blocks
from cmbert.data.shards.shard_set import ShardSet
from cmbert.tokenizer import SPECIALS_PER_SEGMENT, Tokenizer


class Documents:
    """A shard set in memory, of one shard: token 1 ends a sentence."""

    def __init__(self, lengths: np.ndarray, seed: int = 0):
        random = np.random.default_rng(seed)
        self.tokens = [(random.random(length) < 1 / 30).astype(np.uint16) for length in lengths]
        self.lengths, self.num_documents, self.layout = lengths, len(lengths), f"{seed} {lengths.sum()}"

    def document_lengths(self, first: int, last: int) -> np.ndarray:
        return self.lengths[first:last]

    def check_documents(self, first: int, last: int) -> None:
        pass

    def document_tokens(self, document: int) -> np.ndarray:
        return self.tokens[document]

    def locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(documents), np.int64), (np.cumsum(self.lengths) - self.lengths)[documents]


def make_rows(documents: Documents, context: int, seed: int = 0, shuffle_block_rows: int = 512) -> SourceRows:
    ends = np.array([False, True])
    return SourceRows(
        documents,
        context=context,
        sentence_ends=ends,
        shuffle_block_rows=shuffle_block_rows,
        shuffle_blocks=4,
        seed=seed,
    )


CORPORA = {
    "news": lambda random: np.maximum(random.lognormal(6, 1.2, 4000).astype(np.int64), 1),
    "reviews": lambda random: np.maximum(random.lognormal(3.3, 0.8, 30_000).astype(np.int64), 1),
    "laws": lambda random: np.maximum(random.lognormal(8, 1.0, 600).astype(np.int64), 1),
    "one-token": lambda random: np.ones(50_000, dtype=np.int64),
    "exactly full": lambda random: np.full(500, 1022),
    "one more": lambda random: np.full(500, 1023),
}


@pytest.mark.parametrize("context", [256, 1024, 8192])
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_token_once_in_rows_that_fit(corpus: str, context: int) -> None:
    lengths = CORPORA[corpus](np.random.default_rng(5))
    rows = make_rows(Documents(lengths), context)
    spans: dict[int, list[tuple[int, int]]] = {}
    positions = 0
    for index in range(rows.num_rows):
        segments = rows.row(0, index)
        used = sum(length + SPECIALS_PER_SEGMENT for _, _, length in segments)
        assert used <= context
        positions += used
        for document, start, length in segments:
            spans.setdefault(document, []).append((start, start + length))
    assert len(spans) == len(lengths)
    for document, parts in spans.items():
        parts.sort()
        assert parts[0][0] == 0
        assert parts[-1][1] == lengths[document]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
    whole_blocks = lengths.sum() > 20 * 512 * context  # else rounding a block up to whole rows shows
    floor = 0.99 if context >= 1024 and whole_blocks else 0.95
    assert positions / (rows.num_rows * context) >= floor


@pytest.mark.parametrize(("corpus", "context"), [("news", 1024), ("reviews", 1024), ("laws", 1024), ("laws", 8192)])
def test_rows_are_99_percent_full(corpus: str, context: int) -> None:
    lengths = np.tile(CORPORA[corpus](np.random.default_rng(6)), 8 if corpus == "laws" else 2)
    rows = make_rows(Documents(lengths), context)
    positions = sum(n + SPECIALS_PER_SEGMENT for i in range(rows.num_rows) for _, _, n in rows.row(1, i))
    assert positions / (rows.num_rows * context) >= 0.99


def test_rows_are_a_pure_function_of_seed_and_epoch() -> None:
    documents = Documents(CORPORA["news"](np.random.default_rng(1)))
    first, second = make_rows(documents, 1024, shuffle_block_rows=64), make_rows(documents, 1024, shuffle_block_rows=64)
    backwards = [second.row(1, index) for index in reversed(range(second.num_rows))][::-1]
    assert [first.row(1, index) for index in range(first.num_rows)] == backwards
    assert first.row(0, 7) != first.row(1, 7)
    assert first.row(0, 7) != make_rows(documents, 1024, seed=1, shuffle_block_rows=64).row(0, 7)
    everything = sorted(segment for index in range(first.num_rows) for segment in first.row(0, index))
    assert sum(length for _, _, length in everything) == documents.lengths.sum()


def test_row_counts_follow_from_lengths_alone() -> None:
    lengths = CORPORA["news"](np.random.default_rng(2))
    plan = plan_blocks([lengths], 1024, 64)
    assert plan.starts[0] == 0
    assert plan.starts[-1] == len(lengths)
    assert (np.diff(plan.starts) > 0).all()
    assert make_rows(Documents(lengths, seed=9), 1024, shuffle_block_rows=64).num_rows == plan.rows.sum()
    for cuts in ([1], [100, 100, 2000], [3999]):  # however the lengths come in
        again = plan_blocks(np.split(lengths, cuts), 1024, 64)
        assert np.array_equal(again.starts, plan.starts)
        assert np.array_equal(again.rows, plan.rows)


def test_a_plan_is_kept_and_read(tmp_path: Path) -> None:
    lengths = CORPORA["news"](np.random.default_rng(2))
    documents, ends = Documents(lengths), np.array([False, True])

    def rows(documents: Documents, context: int) -> SourceRows:
        made = SourceRows(
            documents,
            context=context,
            sentence_ends=ends,
            shuffle_block_rows=64,
            shuffle_blocks=4,
            seed=0,
            plan_folder=tmp_path,
        )
        made.keep_plan()
        return made

    first = rows(documents, 1024)
    documents.document_lengths, lengths_of = None, documents.document_lengths  # the plan is not made again
    assert np.array_equal(rows(documents, 1024).plan.rows, first.plan.rows)
    assert len(list(tmp_path.iterdir())) == 1
    documents.document_lengths = lengths_of
    rows(documents, 512)
    rows(Documents(lengths, seed=1), 512)
    assert len(list(tmp_path.iterdir())) == 3  # another context, another set: other plans


def cut(ends: np.ndarray, capacity: int) -> list[int]:
    """Cut a document whose token i ends a sentence where `ends` says so."""
    return cut_document(ends.astype(np.uint16), np.array([False, True]), capacity, capacity // 8).tolist()


def test_cuts_prefer_the_last_sentence_end() -> None:
    ends = np.zeros(250, dtype=bool)
    ends[[89, 93, 99]] = True  # capacity 100: the last eighth is 88..100
    assert cut(ends, 100)[1] == 100
    ends[99] = False
    assert cut(ends, 100)[1] == 94
    ends[:] = False
    assert cut(ends, 100) == [0, 100, 200, 250]
    assert cut(np.zeros(101, dtype=bool), 100) == [0, 89, 101]  # no scrap of one token


def naive_best_fit(lengths: list[int], num_rows: int, context: int) -> list[tuple[int, int, int, int]]:
    """(row, segment, start, length): the reference, with lists and searches instead of bits and stacks."""
    room = [context] * num_rows
    last_touched = list(range(num_rows))  # of rows with equal room the one touched last is taken
    placed, left, clock = [], [], num_rows

    def put(row: int, segment: int, start: int, length: int) -> None:
        nonlocal clock
        room[row] -= length + SPECIALS_PER_SEGMENT
        last_touched[row], clock = clock, clock + 1
        placed.append((row, segment, start, length))

    for segment, length in enumerate(lengths):
        fitting = [row for row in range(num_rows) if room[row] >= length + SPECIALS_PER_SEGMENT]
        if fitting:
            put(min(fitting, key=lambda row: (room[row], -last_touched[row])), segment, 0, length)
        else:
            left.append((segment, length))
    for segment, length in left:
        start = 0
        while length:
            row = max(range(num_rows), key=lambda row: (room[row], last_touched[row]))
            part = min(length, room[row] - SPECIALS_PER_SEGMENT)
            put(row, segment, start, part)
            start, length = start + part, length - part
    return placed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 126), min_size=1, max_size=60), st.sampled_from([128, 200]))
def test_best_fit_is_the_naive_one(lengths: list[int], context: int) -> None:
    lengths = sorted(lengths, reverse=True)
    plan = plan_blocks([np.array(lengths)], context, 10**6)
    num_rows = int(plan.rows[0])
    found = best_fit(np.array(lengths), num_rows, context)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == naive_best_fit(lengths, num_rows, context)


def test_real_shards_make_rows(shards: Path, tokenizer: Tokenizer) -> None:
    opened = ShardSet(shards)
    rows = SourceRows(
        opened,
        context=64,
        sentence_ends=tokenizer.sentence_end_tokens(),
        shuffle_block_rows=32,
        shuffle_blocks=4,
        seed=0,
    )
    tokens = sum(length for index in range(rows.num_rows) for _, _, length in rows.row(0, index))
    assert tokens == opened.num_tokens
