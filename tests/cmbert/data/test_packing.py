"""Rows: every token once per epoch, full rows, cuts at sentence ends, a pure function of the seed."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cmbert.data.blend import BLOCK_ROWS, Blend, apportion
from cmbert.data.packing import SPECIALS_PER_PIECE, SourceRows, cut_document, plan_windows
from cmbert.data.shards import ShardSet
from cmbert.tokenizer import Tokenizer


class Documents:
    """A shard set in memory: token 1 ends a sentence."""

    def __init__(self, lengths: np.ndarray, seed: int = 0):
        random = np.random.default_rng(seed)
        self.tokens = [(random.random(length) < 1 / 30).astype(np.int64) for length in lengths]
        self.lengths = lengths

    def document_lengths(self) -> np.ndarray:
        return self.lengths

    def read(self, document: int, start: int = 0, count: int | None = None) -> tuple[np.ndarray, None]:
        return self.tokens[document], None


def make_rows(documents: Documents, context: int, seed: int = 0, window_rows: int = 512) -> SourceRows:
    ends = np.array([False, True])
    return SourceRows(
        documents, context=context, sentence_ends=ends, window_rows=window_rows, group_windows=4, seed=seed
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
        pieces = rows.row(0, index)
        used = sum(length + SPECIALS_PER_PIECE for _, _, length in pieces)
        assert used <= context
        positions += used
        for document, start, length in pieces:
            spans.setdefault(document, []).append((start, start + length))
    assert len(spans) == len(lengths)
    for document, parts in spans.items():
        parts.sort()
        assert parts[0][0] == 0
        assert parts[-1][1] == lengths[document]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
    whole_windows = lengths.sum() > 20 * 512 * context  # else rounding a window up to whole rows shows
    floor = 0.99 if context >= 1024 and whole_windows else 0.95
    assert positions / (rows.num_rows * context) >= floor


@pytest.mark.parametrize(("corpus", "context"), [("news", 1024), ("reviews", 1024), ("laws", 1024), ("laws", 8192)])
def test_rows_are_99_percent_full(corpus: str, context: int) -> None:
    lengths = np.tile(CORPORA[corpus](np.random.default_rng(6)), 8 if corpus == "laws" else 2)
    rows = make_rows(Documents(lengths), context)
    positions = sum(n + SPECIALS_PER_PIECE for i in range(rows.num_rows) for _, _, n in rows.row(1, i))
    assert positions / (rows.num_rows * context) >= 0.99


def test_rows_are_a_pure_function_of_seed_and_epoch() -> None:
    documents = Documents(CORPORA["news"](np.random.default_rng(1)))
    first, second = make_rows(documents, 1024, window_rows=64), make_rows(documents, 1024, window_rows=64)
    backwards = [second.row(1, index) for index in reversed(range(second.num_rows))][::-1]
    assert [first.row(1, index) for index in range(first.num_rows)] == backwards
    assert first.row(0, 7) != first.row(1, 7)
    assert first.row(0, 7) != make_rows(documents, 1024, seed=1, window_rows=64).row(0, 7)
    everything = sorted(piece for index in range(first.num_rows) for piece in first.row(0, index))
    assert sum(length for _, _, length in everything) == documents.lengths.sum()


def test_row_counts_follow_from_lengths_alone() -> None:
    lengths = CORPORA["news"](np.random.default_rng(2))
    starts, rows = plan_windows(lengths, 1024, 64)
    assert starts[0] == 0
    assert starts[-1] == len(lengths)
    assert (np.diff(starts) > 0).all()
    assert make_rows(Documents(lengths, seed=9), 1024, window_rows=64).num_rows == rows.sum()


def test_cuts_prefer_the_last_sentence_end() -> None:
    ends = np.zeros(250, dtype=bool)
    ends[[89, 93, 99]] = True  # capacity 100: the last eighth is 88..100
    assert cut_document(ends, 100)[1] == 100
    ends[99] = False
    assert cut_document(ends, 100)[1] == 94
    ends[:] = False
    assert cut_document(ends, 100) == [0, 100, 200, 250]
    assert cut_document(np.zeros(101, dtype=bool), 100) == [0, 89, 101]  # no scrap of one token


def test_real_shards_make_rows(shards: Path, tokenizer: Tokenizer) -> None:
    opened = ShardSet(shards)
    rows = SourceRows(
        opened, context=64, sentence_ends=tokenizer.sentence_end_tokens(), window_rows=32, group_windows=4, seed=0
    )
    tokens = sum(length for index in range(rows.num_rows) for _, _, length in rows.row(0, index))
    assert tokens == opened.num_tokens


def test_blend_holds_its_shares_and_reads_each_source_in_order() -> None:
    small, large = (make_rows(Documents(CORPORA["reviews"](np.random.default_rng(s)) * s), 256) for s in (1, 3))
    blend = Blend([small, large], [0.25, 0.75], seed=0)
    addresses = [blend.address(row) for row in range(2 * BLOCK_ROWS)]
    for source, share in ((0, 0.25), (1, 0.75)):
        mine = [address for address in addresses if address.source == source]
        assert len(mine) == 2 * BLOCK_ROWS * share
        order = [address.epoch * blend.sources[source].num_rows + address.row for address in mine]
        assert order == list(range(len(mine)))
    assert blend.address(5000) == addresses[5000]
    by_size = Blend([small, large], [0.0, 0.0], seed=0)
    epochs = by_size.epochs(small.num_rows + large.num_rows)
    assert epochs == pytest.approx([1, 1], rel=1e-2)


def test_apportion_is_exact() -> None:
    assert apportion(np.array([1 / 3, 1 / 3, 1 / 3]), 4096).sum() == 4096
    assert apportion(np.array([0.5, 0.25, 0.25]), 8).tolist() == [4, 2, 2]
