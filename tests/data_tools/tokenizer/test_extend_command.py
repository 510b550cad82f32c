"""`extend-tokenizer` as a command: what it says and writes, made once; a mistake is one line, and nothing is left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from cmbert.errors import InputError
from cmbert.tokenizer import load_tokenizer
from data_tools.cli import main
from data_tools.tokenizer.extend import count_units
from data_tools.tokenizer.extend_report import encode_documents
from tests.data_tools.tokenizer.test_extend import DOMAIN, OTHER, documents


@pytest.fixture
def domain(write_lines: Callable) -> Path:
    return write_lines("laws.jsonl", [{"text": text} for text in DOMAIN])


def test_the_command(
    tokenizer_directory: Path,
    domain: Path,
    write_lines: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_lines("reviews.jsonl", [{"text": text} for text in [*OTHER, DOMAIN[0] + "！"]])
    given = ["extend-tokenizer", "--tokenizer", str(tokenizer_directory), "--input", str(domain)]
    given += ["--output", str(tmp_path / "out"), "--other", str(other)]
    assert main([*given, "--add", "20"]) == 0
    first, in_domain, elsewhere, best, rows = capsys.readouterr().out.splitlines()
    assert "384 + 20 = 404 ids, learnt from 86 documents" in first
    assert "held out: 4 documents, every 20th" in in_domain
    assert elsewhere.startswith("other text: 1 of 31 documents change (3.23 %)")
    assert "人民法院" in best
    assert rows == "a model of this tokenizer has 448 rows, a multiple of 64: 44 of them are blank"
    record = json.loads((tmp_path / "out/extension.json").read_text(encoding="utf-8"))
    measures = record["measures"]
    assert measures["rows"] == load_tokenizer(tmp_path / "out").vocabulary.rows == 448
    assert len(measures["highest_gain"]) == 20
    assert measures["highest_gain"][0]["gain"] == max(record["gains"])
    assert measures["domain"]["characters_per_token_after"] > 1.2 * measures["domain"]["characters_per_token_before"]
    assert measures["other"]["documents_changed"] == 1
    assert record["sources"]["laws"]["documents"] == 86
    assert main([*given, "--add", "20"]) == 0
    assert "done already" in capsys.readouterr().out
    assert main([*given, "--add", "21"]) == 2
    assert "other settings (add)" in capsys.readouterr().err
    again = [*given[:2], str(tmp_path / "out"), *given[3:]]
    assert main([*again, "--add", "20"]) == 2
    assert "other settings (tokenizer)" in capsys.readouterr().err


def test_bad_input_is_one_line(
    tokenizer_directory: Path,
    domain: Path,
    write_lines: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("none", "taken", "words", "suffix"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken/file").touch()
    blank = write_lines("blank.jsonl", [{"text": " "}])
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "人"])}
    tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "words/tokenizer.json"))
    suffixed = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>"))
    suffixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    suffixed.save(str(tmp_path / "suffix/tokenizer.json"))
    good, out = str(tokenizer_directory), str(tmp_path / "out")
    cases = {
        "no such file; a tokenizer's folder": [str(tmp_path / "none"), domain, out, "8"],
        "only byte-level BPE can be extended, this is WordPiece; give": [str(tmp_path / "words"), domain, out, "8"],
        "this is BPE whose text or bytes are spelt in another way": [str(tmp_path / "suffix"), domain, out, "8"],
        "exists and has no extension.json; choose another --output": [good, domain, str(tmp_path / "taken"), "8"],
        "no document with text": [good, blank, out, "8"],
        "nowhere.jsonl": [good, tmp_path / "nowhere.jsonl", out, "8"],
        "new ids (pairs of tokens that occur 2 times and more); write --add": [good, domain, out, "30000"],
    }
    before = sorted(tmp_path.iterdir())
    for message, (directory, text, output, add) in cases.items():
        given = ["extend-tokenizer", "--tokenizer", directory, "--input", str(text), "--output", output, "--add", add]
        assert main(given) == 2, message
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert message in said[0]
        assert sorted(tmp_path.iterdir()) == before
    largest = said[0].partition("write --add ")[2].partition(",")[0]
    assert main([*given[:-1], largest]) == 0, "what it told to type"


def test_a_document_that_the_tokenizer_refuses_is_named(refusing_tokenizer: tuple[Path, str]) -> None:
    directory, refused = refusing_tokenizer
    with pytest.raises(InputError, match="s: document 2: the tokenizer cannot encode it"):
        encode_documents(load_tokenizer(directory).backend, documents(["今天", "很好", refused, "abc"]))


def test_rare_units_are_forgotten_beyond_the_bound(tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.tokenizer.training.MOST_UNITS", 20)
    texts = ["法院审理"] * 30 + [f"{chr(0x4E00 + i)}一次" for i in range(200)]
    units, forgotten = count_units(load_tokenizer(tokenizer_directory), documents(texts))
    assert list(units.values()) == [30]
    assert forgotten == 200


def test_a_report_of_little_text(
    tokenizer_directory: Path, write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of a character is shown by its bytes, white space by signs: each line stays one."""
    corpus = write_lines("few.jsonl", [{"text": "鑫鑫鑫 \t\t\n\n鑫森淼"}])
    given = ["extend-tokenizer", "--tokenizer", str(tokenizer_directory), "--input", str(corpus)]
    assert main([*given, "--output", str(tmp_path / "out"), "--add", "2"]) == 0
    _, in_domain, best, _ = capsys.readouterr().out.splitlines()
    assert in_domain.startswith("domain (the learnt text: too few documents to hold any out)")
    assert "<E991> 4" in best
    assert "鑫 4" in best
