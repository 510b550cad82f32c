"""Characters of older encodings and of PDF files become those that people type, and nothing else changes."""

import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from data_tools.clean.config import NormalizeConfig
from data_tools.clean.text.compatibility import FOLDED
from data_tools.clean.text.letters import canonical_letters
from data_tools.clean.text.normalization import Removed, normalizer


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("⽅便⾯的⽣产⼯艺⻅下⾴", "方便面的生产工艺见下頁"),
        ("⻢⻋⻔⻓⻘⻥⻦⻰⻩⻬", "马车门长青鱼鸟龙黄齐"),
        ("\uf900\ufa0e\U0002f800", "豈\ufa0e丽"),  # the second is a character of its own
        ("ｶﾞﾊﾟｳﾞｱﾞ､｢ﾊﾝｶｸ｣｡ｶ\u200bﾞカﾞ", "ガパヴア\u3099、「ハンカク」。ガガ"),
        ("ﾡￂﾤ", "가ᄂ"),
        ("一︐二︒︵三︶﹁四﹂﹐五﹔六﹖七﹪", "一，二。（三）「四」，五；六？七%"),
        ("5㎏、120㎡、3㎥、㎖、9.8㎨、㍿、㋿", "5kg、120m²、3m³、ml、9.8m/s²、株式会社、㋿"),
        ("eﬃcient ﬁle ﬅ", "efficient file st"),
        ("a\xa0b\u2003\u1680\u202fc", "a b c"),
        ("soft\u00adhyphen", "softhyphen"),
        ("①②⑴Ⅳ℃№½²™Å㊣㈱ﾟ", "①②⑴Ⅳ℃№½²™Å㊣㈱\u309a"),
    ],
)
def test_what_is_folded(raw: str, expected: str) -> None:
    normalize = normalizer(NormalizeConfig())
    assert normalize(raw) == unicodedata.normalize("NFC", expected)
    assert normalize(normalize(raw)) == normalize(raw)


def test_it_is_an_option() -> None:
    raw = "⽅便ｶﾞ﹐5㎏ﬁ\xa0好"
    assert normalizer(NormalizeConfig(fold_compatibility=False, squeeze_spaces=False))(raw) == raw
    assert normalizer(NormalizeConfig(squeeze_spaces=False))(raw) == "方便ガ，5kgfi 好"


def test_what_is_folded_is_counted_and_quoted() -> None:
    removed = Removed()
    normalizer(NormalizeConfig())("这是⼀个⽅便⾯厂\xa0\xa0，重5㎏。", removed)
    assert removed.pieces == {"folded_radical": 3, "folded_space": 1, "folded_unit": 1}
    assert removed.characters["folded_space"] == 2
    assert removed.samples["folded_radical"][0] == "这是⼀个⽅便⾯厂\xa0\xa0，重5"
    assert set(removed.samples) == {"folded_radical", "folded_unit"}
    json.dumps(vars(removed))


def test_nothing_is_left_to_fold() -> None:
    """No result holds what would be folded again; NFC mends what kana and Hangul are made of."""
    folded = {old: new for table in FOLDED.values() for old, new in table.items()}
    assert not set("".join(folded.values())) & set(folded)
    for first, last in ((0x2E80, 0x2FD5), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF61, 0xFFDC)):
        for code in range(first, last + 1):
            character = chr(code)
            if character in folded or unicodedata.normalize("NFC", character) != character:
                continue
            assert unicodedata.normalize("NFKC", character) == character, hex(code)


def test_the_radicals_are_unicodes() -> None:
    assert [unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)] == [
        FOLDED["folded_radical"][chr(code)] for code in range(0x2F00, 0x2FD6)
    ]
    supplement = {old: new for old, new in FOLDED["folded_radical"].items() if old < "\u2f00"}
    assert len(supplement) == 114
    assert all(unicodedata.name(new).startswith("CJK UNIFIED IDEOGRAPH-") for new in supplement.values())
    program = "use Unicode::UCD 'charprop'; printf qq(%X %s\\n), $_, charprop($_, 'EqUIdeo') for 0x2E80..0x2EF3"
    perl = shutil.which("perl")
    done = perl and subprocess.run([perl, "-CS", "-e", program], capture_output=True, encoding="utf-8", check=False)
    if not done or done.returncode:
        pytest.skip("the Unicode database's table is Perl's")
    pairs = [line.split(" ") for line in done.stdout.splitlines()]
    assert supplement == {chr(int(old, 16)): new for old, new in pairs if len(new) == 1}


def test_a_held_out_text_is_known_again_folded_or_not() -> None:
    raw = "⽅便⾯的⽣产⼯艺，重5㎏，面积120㎡，ｶﾞﾗｽ﹐好的就是这样的一段话，写得长一点。"
    for fold in (True, False):
        assert canonical_letters(normalizer(NormalizeConfig(fold_compatibility=fold))(raw)) == canonical_letters(raw)


def test_the_row_of_the_report_is_in_the_documents() -> None:
    page = (Path(__file__).parents[4] / "docs" / "data_tools.md").read_text(encoding="utf-8")
    assert "`fold_compatibility`" in page
