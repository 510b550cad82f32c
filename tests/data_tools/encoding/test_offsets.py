"""Units of tokenizers that do not spell their text: by hand, beside a naive reference, beside the byte way."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from cmbert.errors import ConfigError
from cmbert.tokenizer import load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.encoding.align import align
from data_tools.encoding.encode import DocumentEncoder
from data_tools.encoding.encoders import offset_encoder
from data_tools.encoding.offsets import align_offsets
from data_tools.input.document import Document
from tests.other_tokenizers import KINDS, PARTS, ids, mixed_texts, prefix_space, write, write_kind

# (words, (first character, the one behind the last) of each token, bits, lost boundaries)
BY_HAND = (
    (("今天", "天气", "很"), [(0, 1), (1, 2), (2, 3), (3, 5)], "1010", 1),  # 气很 is one token
    (("今天", " ", "天气"), [(0, 2), (3, 5)], "11", 0),  # a dropped space neither glues ...
    (("今\x01天",), [(0, 1), (2, 3)], "10", 0),  # ... nor splits, nor what is dropped inside a word
    (("\x01", "今天"), [(1, 2), (2, 3)], "10", 0),
    (("今天", "\x01", "\x01"), [(0, 2)], "1", 0),
    (("𠮷", "家"), [(0, 1), (0, 1), (0, 1), (0, 1), (1, 2)], "10001", 0),  # bytes of one character
    (("𠮷", "家"), [(0, 1), (0, 2), (1, 2)], "100", 1),  # the second token holds the end of one and part of the other
    (("今天", "好"), [(0, 1), (0, 2), (2, 3)], "101", 0),  # a space that was set before the text
    (("今", "好"), [(0, 1), (1, 1), (1, 2)], "110", 0),  # a token of nothing begins the unit that it stands before
    (("今", "好", "吗"), [(0, 3)], "1", 2),  # an unknown stretch
)


@pytest.mark.parametrize(("words", "offsets", "bits", "lost"), BY_HAND)
def test_units_by_hand(words: tuple[str, ...], offsets: list[tuple[int, int]], bits: str, lost: int) -> None:
    characters = sum(map(len, words))
    for times in (1, 2):  # two documents: nothing goes from one to the other
        found = align_offsets(
            np.array([characters] * times),
            np.array([*map(len, words)] * times),
            np.array([len(offsets)] * times),
            np.array(offsets * times),
        )
        assert found.unit_starts.tolist() == [bit == "1" for bit in bits] * times
        assert found.num_words == times * (bits.count("1") + lost)
        assert found.num_characters == times * characters
        assert found.token_lengths.sum() == found.unit_lengths.sum() <= times * characters


def naive(words: list[str], offsets: list[tuple[int, int]]) -> tuple[list[bool], int]:
    """The rule, character by character: which tokens begin units, and how many word boundaries are lost."""
    begins_word = [index == 0 for word in words for index in range(len(word))]
    owner: list[int | None] = [None] * len(begins_word)  # the first token made of a character
    for token, (start, end) in enumerate(offsets):
        for place in range(start, end):
            owner[place] = token if owner[place] is None else owner[place]
    bits = []
    for token, (start, end) in enumerate(offsets):
        assert end > start
        place, bit = start, False
        while owner[start] == token and not bit:  # its first character is its own: look back over what no token has
            bit = begins_word[place] or place == 0
            place -= 1
            if place < 0 or owner[place] is not None:
                break
        bits.append(bit or token == 0)
    clean = {start for (start, _), bit in zip(offsets, bits, strict=True) if bit}
    lost = sum(
        begins_word[place] and owner[place - 1] is not None and owner[place] is not None and place not in clean
        for place in range(1, len(owner))
    )
    return bits, lost


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_the_naive_ones(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    encoder = DocumentEncoder(write_kind(tmp_path, kind), "rjieba")
    assert not encoder.is_byte_level
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.encode_special_tokens, backend.post_processor = True, None
    texts = [*PARTS, *mixed_texts(200)]
    batch = encoder([Document("", "", text) for text in texts])
    assert not batch.refused
    encodings = [backend.encode(text, add_special_tokens=False) for text in texts]
    kept = [pair for pair in zip(texts, encodings, strict=True) if pair[1].ids]
    assert batch.tally.skipped.total() == len(texts) - len(kept)
    assert batch.lengths.tolist() == [len(encoding.ids) for _, encoding in kept]
    lost = 0
    for (text, encoding), bits in zip(kept, np.split(batch.unit_starts, np.cumsum(batch.lengths)[:-1]), strict=True):
        expected, lost_here = naive(encoder.segmenter.cut(text), encoding.offsets)
        assert bits.tolist() == expected, (text, encoding.tokens)
        lost += lost_here
        alone = encoder([Document("", "", text)])
        assert alone.unit_starts.tolist() == expected
        assert alone.tally.lost_boundaries() == lost_here
    vocabulary, tally = encoder.tokenizer.vocabulary, batch.tally
    assert tally.lost_boundaries() == lost
    assert tally.characters == sum(len(text) for text, _ in kept)
    assert tally.token_lengths.sum() == len(batch.tokens)
    assert tally.unit_lengths.sum() == tally.units == batch.unit_starts.sum()
    has_unk = vocabulary.unk_id is not None
    assert tally.unknown_tokens == (np.count_nonzero(batch.tokens == vocabulary.unk_id) if has_unk else None)
    assert set(batch.tokens[~vocabulary.is_ordinary[batch.tokens]].tolist()) <= {vocabulary.unk_id}
    again = encoder([Document("", "", text) for text in texts])
    assert again.tokens.tolist() == batch.tokens.tolist()
    assert again.unit_starts.tolist() == batch.unit_starts.tolist()
    assert again.tally.as_manifest() == batch.tally.as_manifest()


@pytest.mark.parametrize("own", ["known_tokenizer_directory", "tokenizer_directory"])
def test_both_ways_agree_on_byte_level_tokens(own: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("rjieba")
    encoder = DocumentEncoder(request.getfixturevalue(own), "rjieba")
    assert encoder.is_byte_level
    texts = [encoder.prepare(text) for text in [*PARTS, *mixed_texts(200, seed=1)]]
    words = np.array([len(word) for text in texts for word in encoder.segmenter.cut(text)])
    found = offset_encoder(encoder.tokenizer).encode(texts)
    assert found.ids.tolist() == encoder.encoder.encode(texts).ids.tolist()
    one = align("".join(texts), words, encoder.token_bytes[found.ids])
    other = align_offsets(np.array(list(map(len, texts))), words, found.lengths, found.offsets)
    assert one.unit_starts.tolist() == other.unit_starts.tolist()
    assert one.token_lengths.tolist() == other.token_lengths.tolist()
    assert one.unit_lengths.tolist() == other.unit_lengths.tolist()
    assert (one.num_characters, one.num_words) == (other.num_characters, other.num_words)


def lossy(way: str) -> tokenizers.Tokenizer:
    """A tokenizer that is byte-level, but for one thing."""
    values = json.loads(prefix_space().to_str())
    if way == "a byte is missing":
        values["model"]["vocab"]["other"] = values["model"]["vocab"].pop("!")
    backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False)
    before = {
        "spaces are removed": [pre_tokenizers.Split(" ", "removed")],
        "white space is removed": [pre_tokenizers.Whitespace()],
    }
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before.get(way, []), spell])
    if way == "a token takes the space before it":
        backend.add_tokens([tokenizers.AddedToken("today", lstrip=True)])
    return backend


@pytest.mark.parametrize(
    ("way", "units"),
    [
        ("none", ["今天", " today", "!"]),
        ("spaces are removed", ["今天", "today", "!"]),
        ("white space is removed", ["今天", "today", "!"]),
        ("a byte is missing", ["今天", " today"]),
        ("a token takes the space before it", ["今天", " today", "!"]),
    ],
)
def test_byte_level_tokens_that_lose_text_are_placed_by_offsets(way: str, units: list[str], tmp_path: Path) -> None:
    encoder = DocumentEncoder(write(tmp_path, lossy(way)), "auto")
    assert encoder.is_byte_level == (way == "none")
    batch = encoder([Document("", "", "今天 today!")])
    lengths = np.bincount([len(unit) for unit in units], minlength=9)
    assert batch.tally.unit_lengths.tolist() == lengths.tolist()
    assert batch.tally.lost_boundaries() == (1 if " today" in units else 0)


def test_text_that_spells_a_special_token_is_unknown(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=ids(*SPECIAL_TOKENS, "今天"), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # so that "[MASK]" is looked up as a word
    encoder = DocumentEncoder(write(tmp_path / "a", backend), "auto")
    batch = encoder([Document("", "", "[MASK] 今天")])
    assert batch.tokens.tolist()[0] == encoder.tokenizer.vocabulary.unk_id
    assert batch.tally.unknown_tokens == 1
    names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids(*names, "今", "天"), merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(names))
    (tmp_path / "b").mkdir()
    backend.save(str(tmp_path / "b" / "tokenizer.json"))
    encoder = DocumentEncoder(tmp_path / "b", "auto")
    assert encoder([Document("", "", "今天")]).tally.unknown_tokens is None
    with pytest.raises(ConfigError, match=r"tokenizer\.json: makes its special token \[MASK\] of text that spells it"):
        encoder([Document("", "", "今天 [MASK]")])


def test_what_is_refused_is_told_and_its_neighbours_are_placed(refusing_tokenizer: tuple[Path, str]) -> None:
    directory, refused = refusing_tokenizer
    encoder = offset_encoder(load_tokenizer(directory))
    found = encoder.encode(["今天", refused, "好", ""])
    assert list(found.refused) == [1]
    assert len(found.offsets) == len(found.ids) == found.lengths.sum()
    assert found.offsets[-1].tolist() == [0, 1]
