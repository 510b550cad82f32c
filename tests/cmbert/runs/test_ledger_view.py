"""A step's texts are readable whatever the tokenizer: word pieces joined, masks around what they hide."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cmbert.runs.ledger_view import decode
from cmbert.tokenizer import Tokenizer, load_tokenizer
from tests.other_tokenizers import KINDS, mixed_texts, write_kind


def shown(tokenizer: Tokenizer, ids: list[int], masked: dict[int, int]) -> str:
    """Return one segment; masked: what stands in the place of a token."""
    vocabulary = tokenizer.vocabulary
    now = [masked.get(place, token) for place, token in enumerate(ids)]
    batch = SimpleNamespace(
        input_ids=np.array([vocabulary.cls_id, *now, vocabulary.sep_id, vocabulary.pad_id]),
        cu_seqlens=np.array([0, len(ids) + 2, len(ids) + 3]),
        masked_positions=np.array([place + 1 for place in sorted(masked)], dtype=np.int64),
        targets=np.array([ids[place] for place in sorted(masked)], dtype=np.int64),
    )
    (text,) = decode(batch, tokenizer)  # type: ignore[arg-type]
    return text


def test_word_pieces(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_kind(tmp_path, "wordpiece"))
    ids, mask = tokenizer.encode("今天天气很好 today cafes isn't 龘。"), tokenizer.vocabulary.mask_id
    assert shown(tokenizer, ids, {}) == "今天天气很好today cafes isn ' t [UNK]。"
    today, piece = tokenizer.backend.token_to_id("today"), tokenizer.backend.token_to_id("##s")
    assert (ids[6], ids[8]) == (today, piece)
    assert shown(tokenizer, ids, {1: mask, 6: mask, 7: ids[0], 8: piece}) == (
        "今⟦天⟧天气很好⟦today⟧ ⟦cafe→今⟧⟦s=⟧ isn ' t [UNK]。"
    )


def test_a_space_is_kept_before_its_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_kind(tmp_path, "byte fallback"))
    ids = tokenizer.encode("今天 today 好😀")
    assert shown(tokenizer, ids, {}) == "今天 today 好😀"
    assert shown(tokenizer, ids, {1: tokenizer.vocabulary.mask_id}) == "今天 ⟦t⟧oday 好😀"


def test_own_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("今天 a\n")
    assert shown(tokenizer, ids, {}) == "今天 a⏎"
    everything = dict.fromkeys(range(len(ids)), tokenizer.vocabulary.mask_id)
    assert shown(tokenizer, ids, everything).count("⟦") == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_any_masks_of_any_kind(kind: str, tmp_path: Path) -> None:
    tokenizer, random = load_tokenizer(write_kind(tmp_path, kind)), np.random.default_rng(0)
    vocabulary = tokenizer.vocabulary
    for text in mixed_texts(30, seed=3):
        ids = tokenizer.encode(text)
        places = [place for place in range(len(ids)) if vocabulary.is_ordinary[ids[place]] and random.random() < 0.3]
        now = {place: int(random.choice([vocabulary.mask_id, ids[place], vocabulary.ordinary[7]])) for place in places}
        assert shown(tokenizer, ids, now).count("⟦") == len(places)
