"""The steps of `clean` in place of datatrove's slower ones: the same hashes, the same texts."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.clean.config import DuplicatesConfig
from tests.data_tools.clean.texts import LONG

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from data_tools.clean.similar import MERSENNE, SIGNATURE_BLOCK, ShingleSignature
from data_tools.clean.steps import OUTPUT_LEVEL, Reread, WriteTexts


def test_signatures_are_datatroves(tmp_path: Path) -> None:
    """Also of the numbers around the prime, where its remainder is not the sum of a number's bits."""
    signer = ShingleSignature(str(tmp_path), DuplicatesConfig())
    text = signer.get_shingles(LONG * 3)
    assert len(text) > 2 * SIGNATURE_BLOCK
    edges = np.array([[0], [1], [MERSENNE - 1], [MERSENNE], [MERSENNE + 1], [2**63], [2**64 - 1]], dtype=np.uint64)
    for shingles in (text, text[:1], edges, *edges.reshape(-1, 1, 1)):
        assert signer.get_signature(shingles) == MinhashDedupSignature.get_signature(signer, shingles)
    signer._parameters = (np.ones((1, 112), np.uint64), np.zeros((1, 112), np.uint64))  # so that the edges are met
    for shingles in edges.reshape(-1, 1, 1):
        assert signer.get_signature(shingles) == [[int(shingles[0, 0] % MERSENNE)] * 8] * 14


def test_texts_are_read_as_written(tmp_path: Path) -> None:
    texts = (LONG, "a\u2028b\n\t“”😀")
    documents = [Document(text, f"第{i}", metadata={"source": "s"}) for i, text in enumerate(texts)]
    assert list(WriteTexts(tmp_path, OUTPUT_LEVEL).run(iter(documents), rank=3)) == documents
    assert list(Reread(tmp_path).run(rank=3)) == documents
    assert list(WriteTexts(tmp_path, OUTPUT_LEVEL).run(iter([]), rank=4)) == list(Reread(tmp_path).run(rank=4)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["00003.jsonl.zst"]
