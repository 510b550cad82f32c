"""Files of pairs, grades, judgements and vocabularies as people may have them."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmbert.transfer.contamination import DATA_FILE, read_training_data
from cmbert.transfer.embedding.pairs import PairFile, read_inference, read_labelled, read_pairs, read_similarity
from cmbert.transfer.embedding.t2ranking import read_references, resolve
from data_tools.tokenizer.report import read_wordpiece
from tests.fuzz.doors import (
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
    json_bytes,
)

PAIR = {"sentence1": "今天\ud83d\ude00", "sentence2": "乙", "label": "1"}
READERS: dict[str, tuple[Any, list[Any]]] = {
    "pairs": (read_pairs, [PAIR, PAIR | {"sentence2": "丙", "label": 0}]),
    "triplets": (
        read_pairs,
        [{"query": "甲", "title": "乙", "neg_title": "丙"}, {"query": "丁", "title": "丁", "neg_title": "丙"}],
    ),
    "labelled": (read_labelled, [PAIR, PAIR | {"label": 0}]),
    "inference": (
        read_inference,
        [PAIR | {"label": "entailment"}, PAIR | {"label": "contradiction", "sentence2": "丙"}],
    ),
    "similarity": (read_similarity, [PAIR | {"score": 2.5}, PAIR | {"score": "5"}]),
}
TABLES = (
    "sentence1\tsentence2\tscore\n今天\U0001f600\t乙\t4\r\nc\td\t0\n".encode(),
    "train-0||甲||乙||3\ntrain-1||c||d||1\n".encode(),
)
T2RANKING = {
    "collection.tsv": 'pid\ttext\n0\t零\n1\t一 "引\r\n2\t二\n'.encode(),
    "queries.train.tsv": "qid\ttext\n7\t问七\n8\t问八\n".encode(),
    "qrels.train.tsv": b"qid\t-\tpid\trel\n7\t0\t0\t3\n7\t0\t2\t0\n8\t0\t1\t2\n",
    "qrels.retrieval.train.tsv": b"qid\tpid\n7\t1\n8\t2\n",
}
VOCABULARY = "[PAD]\n[UNK]\n\u2028\n\n今\r\n##天\n".encode()


def read(reader: Any, written: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(written)
        found = accepts_or_says(lambda: reader(path), str(path))
        if found is not None:
            rows = found.pairs if isinstance(found, PairFile) else found
            assert rows
            texts = [text for row in rows for text in row if isinstance(text, str)]
            assert all(text.strip() for text in texts)
            assert "".join(texts).encode("utf-8")
            assert all(0 <= value <= 1 for row in rows for value in row if isinstance(value, int | float))


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@inputs_at_this_door(share=0.2)
def test_json_lines(name: str, data: st.DataObject) -> None:
    reader, records = READERS[name]
    values = damaged_values(records).map(lambda value: value if isinstance(value, list) else [value])
    lines = st.builds(lambda rows, raw: b"\n".join(json_bytes(row, raw) for row in rows), values, st.booleans())
    read(reader, data.draw(st.one_of(lines, lines, damaged_bytes(b"\n".join(map(json_bytes, records))))))


@given(written=damaged_bytes(*TABLES))
@inputs_at_this_door()
def test_graded_tables(written: bytes) -> None:
    read(read_similarity, written)


@pytest.mark.parametrize("damaged", T2RANKING)
@given(data=st.data())
@inputs_at_this_door(share=0.25)
def test_t2ranking(damaged: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, written in T2RANKING.items():
            if damaged != "qrels.retrieval.train.tsv" or file != "qrels.train.tsv":
                (folder / file).write_bytes(written)
        (folder / damaged).write_bytes(data.draw(damaged_bytes(T2RANKING[damaged])))
        pairs = accepts_or_says(lambda: resolve(folder, read_references(folder), negatives=True), name)
        assert pairs is None or all(text.strip() for pair in pairs for text in pair if text is not None)


@given(written=damaged_bytes(VOCABULARY))
@inputs_at_this_door()
def test_vocabularies(written: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(written)
        backend = accepts_or_says(lambda: read_wordpiece(path), f"--against {path}")
        if backend is not None:
            ids = backend.encode("今天 good \u2028\x85 \U0001f600").ids
            assert all(backend.id_to_token(index) is not None for index in ids)


@given(written=damaged_json([{"path": "a", "source": "other", "pairs": 3, "blake2b": "00"}]))
@inputs_at_this_door()
def test_records_of_what_was_trained_on(written: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / DATA_FILE).write_bytes(written)
        accepts_or_says(lambda: read_training_data(Path(folder)), folder)
