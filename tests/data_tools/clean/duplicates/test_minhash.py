"""Band keys: equal exactly where datatrove's signatures are, and the same of compiled code as of a naive reference."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean.config import DuplicatesConfig
from data_tools.clean.duplicates import minhash
from data_tools.clean.duplicates.minhash import (
    MERSENNE,
    SHINGLE_BLOCK,
    Signer,
    letter_table,
    shingles,
    similarity,
    text_key,
)
from data_tools.clean.text.characters import BY_PYTHON
from data_tools.clean.text.kernels import GRAM_MULTIPLIER, GRAM_SHIFT
from tests.data_tools.clean.texts import GOOD, LONG

SMALL = DuplicatesConfig(shingle_characters=3, num_buckets=4, hashes_per_bucket=2)
HARD = "İΣςAΑ'. \u0345\u0307ǅßẞŉﬁ中１a１\u0301𠮷𐐀\U0001e900\U000e0041\ud800\0٣½Ⅷ㊀\ufeff\U0010ffff"
TEXTS = st.one_of(st.text(max_size=40), st.text(HARD, max_size=40), st.text("一二Aa", max_size=600))


def naive_shingles(text: str, length: int) -> list[int]:
    letters = [ord(letter) for letter in text.lower() if letter.isalnum()]
    found = []
    for first in range(len(letters) - length + 1):
        value = 0
        for code in letters[first : first + length]:
            value = (value + code) * int(GRAM_MULTIPLIER) % 2**64
            value ^= value >> int(GRAM_SHIFT)
        found.append(value)
    return found


def naive_bands(text: str, config: DuplicatesConfig) -> list[tuple[int, ...]] | None:
    """The minimum hashes of every band."""
    hashed, size = naive_shingles(text, config.shingle_characters), config.hashes_per_bucket
    if not hashed:
        return None
    random, count = np.random.RandomState(1), config.num_buckets * size
    factors, summands = (random.randint(low, MERSENNE, dtype=np.uint64, size=(1, count))[0].tolist() for low in (1, 0))
    lowest = [
        min((value * factor + summand) % 2**64 % MERSENNE for value in hashed)
        for factor, summand in zip(factors, summands, strict=True)
    ]
    return [tuple(lowest[first : first + size]) for first in range(0, count, size)]


def mixed(numbers: tuple[int, ...], band: int) -> int:
    key = (band + 1) * 0x9E3779B97F4A7C15 % 2**64
    for number in numbers:
        key ^= number
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            key = (key ^ key >> 33) * factor % 2**64
        key ^= key >> 33
    return key


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_keys_are_those_of_a_naive_reference(text: str) -> None:
    text = text.replace("\ud800", "")  # documents hold none
    bands = naive_bands(text, SMALL) or [(text_key(text.encode()),)] * SMALL.num_buckets
    assert Signer(SMALL)(text).tolist() == [mixed(numbers, band) for band, numbers in enumerate(bands)]


def test_keys_of_more_than_a_block_and_of_any_shape() -> None:
    for length in (SHINGLE_BLOCK - 1, SHINGLE_BLOCK, SHINGLE_BLOCK + 1, 3 * SHINGLE_BLOCK + 17):
        text = "".join(chr(0x4E00 + 37 * index % 20_000) for index in range(length + 2))
        assert len(shingles(text, 3)) == length
        bands = naive_bands(text, SMALL)
        assert bands
        assert Signer(SMALL)(text).tolist() == [mixed(numbers, band) for band, numbers in enumerate(bands)]
    for config in (DuplicatesConfig(num_buckets=1, hashes_per_bucket=1), DuplicatesConfig(num_buckets=5)):
        keys = Signer(config)(LONG)
        assert keys.shape == (config.num_buckets,)
        assert keys.dtype == np.uint64


def test_hashes_around_the_prime() -> None:
    """Where the remainder is not the sum of a number's bits."""
    edges = [0, 1, MERSENNE - 1, MERSENNE, MERSENNE + 1, 2**63, 2**64 - 1, 2 * MERSENNE]
    for edge in edges:
        lowest, one = np.full(2, MERSENNE, np.int64), np.ones(2, np.uint64)
        minhash._lower(lowest, np.array([edge] * 16, np.uint64), 16, one, one - one)
        assert lowest.tolist() == [edge % MERSENNE] * 2


def test_texts_share_bands_where_datatroves_signatures_do() -> None:
    pytest.importorskip("datatrove")
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class NoWords(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return [text]

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = DuplicatesConfig()
    theirs = MinhashDedupSignature(
        "unwritten",
        MinhashConfig(
            n_grams=config.shingle_characters,
            num_buckets=config.num_buckets,
            hashes_per_bucket=config.hashes_per_bucket,
            hash_config=HashConfig(precision=64, hash_fc="sha1"),
        ),
        language=NoWords(),
    )
    signer, page = Signer(config), "\n".join(GOOD)
    texts = [page, page.replace("，", " ").upper(), *(page[cut:] for cut in range(0, 60, 4)), *GOOD, LONG, LONG * 2]
    bands = [theirs.get_signature(shingles(text, config.shingle_characters).reshape(-1, 1)) for text in texts]
    keys = [signer(text).tolist() for text in texts]
    shared = 0
    for one in range(len(texts)):
        for other in range(one):
            equal = [first == second for first, second in zip(bands[one], bands[other], strict=True)]
            assert equal == [first == second for first, second in zip(keys[one], keys[other], strict=True)]
            shared += 0 < sum(equal) < config.num_buckets
    assert shared > 20


def test_a_text_without_a_shingle_is_near_equal_ones_only() -> None:
    signer = Signer(DuplicatesConfig())
    short = ["", "好", "七个字的短文本", "！？" * 50, "！？" * 51, "七个字的短文本。"]
    keys = np.stack([signer(text) for text in (*short, LONG)])
    for one, other in pairwise(range(len(keys))):
        assert not (keys[one] == keys[other]).any()
    assert len(np.unique(keys)) == keys.size
    assert all((signer(text) == keys[index]).all() for index, text in enumerate(short))


def test_letters_of_every_code_point() -> None:
    """Alone and behind a letter and before one, which is all that lower() looks at."""
    table = letter_table()
    by_python = [code for code, letter in enumerate(table.tolist()) if letter == BY_PYTHON]
    assert by_python == [0x130, 0x3A3]
    for code in range(sys.maxunicode + 1):
        letter = chr(code).lower()
        if code not in by_python:
            found = table[code] if code < len(table) else 0
            assert found == (ord(letter) if letter.isalnum() else 0)
            assert f"a{chr(code)}b".lower() == f"a{letter}b"


def test_letters_where_lower_looks_around() -> None:
    assert naive_shingles("ΟΔΟΣ ΟΔΟΣ.", 8) == shingles("οδος οδος", 8).tolist()
    signer = Signer(DuplicatesConfig())
    assert (signer("ΟΔΟΣ ΟΔΟΣ" * 3) == signer("οδος οδοσ" * 2 + "οδος οδος")).all()
    assert (signer("İstanbul" * 3) == signer("i\u0307stanbul" * 3)).all()


def test_similarity_is_jaccards() -> None:
    assert similarity(LONG, LONG, 8) == 1
    assert similarity("", "", 8) == 0
    one, other = GOOD[0] + GOOD[1], GOOD[0] + GOOD[2]
    first, second = (set(naive_shingles(text, 8)) for text in (one, other))
    assert similarity(one, other, 8) == len(first & second) / len(first | second)
