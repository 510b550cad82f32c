"""Text files as they may come to data_tools, whole and in byte ranges, and what clean makes of any text."""

import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_tools.defaults
from data_tools.clean.config import CleanConfig, NormalizeConfig, load_clean_config
from data_tools.clean.text.decodability import damage
from data_tools.clean.text.normalization import normalizer
from data_tools.clean.text.quality import drop_reason
from data_tools.input.document import Document
from data_tools.input.readers import ByteRange, DocumentReader
from data_tools.input.streams import row_group_bytes
from tests.fuzz.doors import (
    ODD_VALUES,
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
    json_bytes,
)

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

RECORD = {"id": "a7", "source": "web", "text": "今天天气很好，\n我们去公园。", "meta": {"n": [1, None]}}
LINES = b"".join(json_bytes({**RECORD, "id": number}, escaped=number % 2 == 0) + b"\n" for number in range(6))
RECORDS = st.one_of(st.just(RECORD), damaged_values(RECORD))


def packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if name.endswith(".zst") else data


def table(*rows: dict[str, Any], compression: str = "zstd") -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer, row_group_size=2, compression=compression)
    return buffer.getvalue()


TABLES = (
    table(*({**RECORD, "id": number} for number in range(7))),
    table(*({"text": "好" * number, "id": str(number)} for number in range(5)), compression="none"),
)


def whole_and_in_ranges(path: Path, bounds: list[int]) -> None:
    """Read a file both ways, with both choices; its byte ranges together give what the whole gives, be it damaged."""
    ranges = [ByteRange(path, start, end) for start, end in zip([0, *bounds], [*bounds, None], strict=True)]
    found: list[list[Document] | None] = []
    counts: list[Counter[str]] = []
    for parts in ([ByteRange(path)], ranges):
        accepts_or_says(lambda parts=parts: list(DocumentReader(parts)), str(path))
        reader = DocumentReader(parts, on_bad_line="skip")
        found.append(accepts_or_says(lambda reader=reader: list(reader), str(path)))
        counts.append(reader.skipped)
    assert found[0] == found[1]
    if found[0] is None:
        return
    assert counts[0] == counts[1]
    texts = (f"{document.id}{document.source}{document.text}" for document in found[0])
    assert "".join(texts).encode("utf-8") is not None
    assert not any("\0" in document.text for document in found[0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
@given(data=st.data())
@inputs_at_this_door(share=0.5)
def test_lines(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Damaged text, packed soundly, and sound text in a damaged pack."""
    text = data.draw(
        st.one_of(
            damaged_bytes(LINES),
            st.lists(st.one_of(RECORDS.map(json_bytes), st.binary(max_size=20)), max_size=4).map(b"\n".join),
        )
    )
    content = data.draw(st.one_of(st.just(packed(name, text)), damaged_bytes(packed(name, LINES))))
    (tmp_path / name).write_bytes(content)
    bounds = sorted(data.draw(st.sets(st.integers(1, len(text) + 10), max_size=3)))
    whole_and_in_ranges(tmp_path / name, bounds)


WHOLE = {
    "a.csv": 'id,text,source\r\n1,"今天天气很好，\n我们去公园。",web\r\n2,"他说""好""",s\r\n3,,\r\n'.encode(),
    "a.tsv": b"\xef\xbb\xbftext\tlabel\n" + '好\t1\n\n"一\t二"\t0\n'.encode(),
    "a.json": json_bytes([RECORD, {**RECORD, "id": 8}, '今天"\\', [], {"text": "好"}], escaped=False),
    "b.json": json_bytes(["今天\ud83d", RECORD["text"], [[{}]]], escaped=True),
    "a.txt": "第一章\n开头。\n\n \n第二章\r\n完。\n".encode(),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("compression", ["", ".gz"])
@given(data=st.data())
@inputs_at_this_door(share=0.3)
def test_files_that_are_read_whole(tmp_path: Path, name: str, compression: str, data: st.DataObject) -> None:
    path = tmp_path / (name + compression)
    values = st.lists(RECORDS, max_size=4).map(json_bytes) if name == "a.json" else damaged_bytes(WHOLE[name])
    text = data.draw(st.one_of(damaged_bytes(WHOLE[name]), values))
    path.write_bytes(data.draw(st.one_of(st.just(packed(path.name, text)), damaged_bytes(packed(path.name, text)))))
    block = data.draw(st.sampled_from(data_tools.defaults.TXT_DOCUMENTS))
    for on_bad_line in ("fail", "skip"):
        reader = DocumentReader([ByteRange(path)], on_bad_line=on_bad_line, txt_document=block)
        for document in accepts_or_says(lambda reader=reader: list(reader), str(path)) or ():
            assert f"{document.id}{document.source}{document.text}".encode() is not None
            assert "\0" not in document.text


@given(data=st.data())
@inputs_at_this_door(share=0.5)
def test_parquet(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data.draw(damaged_bytes(*TABLES)))
    groups = accepts_or_says(lambda: row_group_bytes(path), str(path))
    bounds = range(1, len(groups or ()))
    whole_and_in_ranges(path, sorted(data.draw(st.sets(st.sampled_from(bounds)))) if bounds else [])


@given(rows=st.lists(damaged_values({"text": "好", "id": 1, "source": "s", "meta": [1]}), min_size=1, max_size=4))
@inputs_at_this_door(share=0.4)
def test_columns_of_any_type(tmp_path: Path, rows: list[Any]) -> None:
    try:
        (tmp_path / "a.parquet").write_bytes(table(*(row for row in rows if isinstance(row, dict))))
    except (pyarrow.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        return  # nobody can write such a file
    whole_and_in_ranges(tmp_path / "a.parquet", [])


CLEAN = b"""source = "web"
text_key = "text"
on_bad_line = "skip"
heldout_share = 0.01
[normalize]
urls = "remove"
fold_compatibility = true
[quality]
min_characters = 50
min_hanzi_share = 0.4
max_undecodable_share = 0.01
[duplicates]
near = true
num_buckets = 14
[contamination]
min_share = 0.5
[[metadata]]
key = "score"
min = 3.0
share = 0.5
[[metadata]]
key = "meta.level"
values = ["high", "4"]
"""
VALUES = st.sampled_from(
    ("nan", "inf", "-inf", "-1", "0", "1", "2", "1e999", "9" * 400, "[]", '""', "true", "{}", "1.5")
)
KEYS = st.sampled_from(("min_characters", "max_characters", "max_digit_share", "max_mojibake_share", "min_hanzi"))


@given(
    data=st.one_of(
        damaged_bytes(CLEAN),
        st.builds("heldout_share = {}\n[duplicates]\nnum_buckets = {}\n".format, VALUES, VALUES).map(str.encode),
        st.builds("[quality]\n{} = {}\n".format, KEYS, VALUES).map(str.encode),
    )
)
@inputs_at_this_door()
def test_cleans_configuration(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "clean.toml"
    path.write_bytes(data)
    config = accepts_or_says(lambda: load_clean_config(path), str(path))
    if config:
        assert 0 <= config.heldout_share < 1
        assert all(0 <= value <= 1 for name, value in vars(config.quality).items() if name.endswith("_share"))


PIECES = st.one_of(
    st.text(max_size=8),
    st.text(alphabet=st.characters(min_codepoint=0x2E80, max_codepoint=0xFFFF), max_size=8),
    st.text(alphabet="\r\n\t \x0b\x85\u2028\u3000\xa0\u200b\u00ad\u0301ｶﾞﾟ⽅㎏ﬁ\ud83d\ufffd\U0001f468\u200d", max_size=8),
    st.sampled_from(
        ("a@b.cn", "http://x.cn/a?b", "www.x.cn", "<b>", "</p>", "&amp;", "&lt;", "<!--", "-->", "<email>")
    ),
    st.sampled_from([value for value in ODD_VALUES if isinstance(value, str)]),
)
CONFIGS = [
    NormalizeConfig(strip_html=False),
    NormalizeConfig(strip_html=False, urls="replace", fold_width=False),
    NormalizeConfig(strip_html=False, emails="keep", squeeze_spaces=False),
    NormalizeConfig(strip_html=False, fold_compatibility=False),
]


@given(text=st.lists(PIECES, max_size=8).map("".join), config=st.sampled_from(CONFIGS))
@inputs_at_this_door(share=0.5)
def test_normalisation_of_any_text(text: str, config: NormalizeConfig) -> None:
    """Done twice it does nothing more, and it can be written. (Markup that is written out, &lt;b&gt;, becomes some.)"""
    quality = CleanConfig().quality
    once = normalizer(config)(text)
    once.encode("utf-8")
    assert normalizer(config)(once) == once
    normalizer(NormalizeConfig(urls="remove", emails="remove"))(text).encode("utf-8")
    damage(text, quality)
    drop_reason(once, quality)


@given(data=damaged_json(RECORD))
@inputs_at_this_door()
def test_one_record(tmp_path: Path, data: bytes) -> None:
    """With "skip" no record may end a run, and with "fail" it is named by its line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_bytes(RECORD) + b"\n" + data + b"\n" + json_bytes(RECORD))
    accepts_or_says(lambda: list(DocumentReader([ByteRange(path)])), f"{path}:")
    reader = DocumentReader([ByteRange(path)], on_bad_line="skip")
    texts = [document.text for document in reader]
    assert texts[0] == texts[-1] == RECORD["text"]
    assert len(texts) + reader.skipped.total() >= 2
