"""Characters that Unicode keeps for older encodings only, and PDF files are full of, as those that people type.

NFKC does too much for a text: it makes 1 of ①, m2 of m² and a space with an accent of ´. Here it is limited to blocks
in which it loses nothing, and goes on where it stops, at the radicals.
"""

import re
import unicodedata
from collections.abc import Callable

# Source: Unicode Character Database, EquivalentUnifiedIdeograph.txt (14.0.0): CJK Radicals Supplement, all but U+2E80.
# NFKC knows two of these. The Kangxi radicals (U+2F00-U+2FD5) are the same there and in NFKC.
RADICALS = """
⺁厂 ⺂乛 ⺃乚 ⺄乙 ⺅亻 ⺆冂 ⺇𠘨 ⺈刀 ⺉刂 ⺊卜 ⺋㔾 ⺌小 ⺍小 ⺎兀 ⺏尣 ⺐尢 ⺑𡯂 ⺒巳 ⺓幺
⺔彑 ⺕彐 ⺖忄 ⺗心 ⺘扌 ⺙攵 ⺛旡 ⺜日 ⺝月 ⺞歺 ⺟母 ⺠民 ⺡氵 ⺢氺 ⺣灬 ⺤爫 ⺥爫 ⺦丬 ⺧牛
⺨犭 ⺩王 ⺪𤴔 ⺫目 ⺬示 ⺭礻 ⺮𥫗 ⺯糹 ⺰纟 ⺱罓 ⺲罒 ⺳㓁 ⺴冗 ⺵𦉫 ⺶羊 ⺷𦍌 ⺸𦍋 ⺹耂 ⺺肀
⺻聿 ⺼肉 ⺽𦥑 ⺾艹 ⺿艹 ⻀艹 ⻁虎 ⻂衤 ⻃覀 ⻄西 ⻅见 ⻆角 ⻇𧢲 ⻈讠 ⻉贝 ⻊𧾷 ⻋车 ⻌辶 ⻍辶
⻎辶 ⻏邑 ⻐钅 ⻑長 ⻒镸 ⻓长 ⻔门 ⻕𨸏 ⻖阝 ⻗雨 ⻘青 ⻙韦 ⻚页 ⻛风 ⻜飞 ⻝食 ⻞𩙿 ⻟飠 ⻠饣
⻡𩠐 ⻢马 ⻣骨 ⻤鬼 ⻥鱼 ⻦鸟 ⻧卤 ⻨麦 ⻩黄 ⻪黾 ⻫斉 ⻬齐 ⻭歯 ⻮齿 ⻯竜 ⻰龙 ⻱龜 ⻲亀 ⻳龟
"""
CONTEXT_CHARACTERS = 10  # on each side of what the report quotes
CHINESE_WIDTH = str.maketrans(",:;!?()", "，：；！？（）")  # what small and vertical forms of these are in Chinese

AS_TYPED = str.maketrans("\u2215ℓ", "/l")  # in units


def _nfkc(first: int, last: int) -> dict[str, str]:
    """Return the NFKC of each character of a range that has another one."""
    characters = map(chr, range(first, last + 1))
    return {old: new for old in characters if (new := unicodedata.normalize("NFKC", old)) != old}


def _one_step(first: int, last: int) -> dict[str, str]:
    """Likewise without what NFKC does to the result: ㎡ is m², no m2, and an overline no accent on a space."""
    found = {}
    for old in map(chr, range(first, last + 1)):
        _, *codes = unicodedata.decomposition(old).split() or [""]
        if codes:
            found[old] = "".join(chr(int(code, 16)) for code in codes).translate(AS_TYPED)
    return found


FOLDED = {  # by the name it is counted under
    "folded_radical": _nfkc(0x2F00, 0x2FD5) | {pair[0]: pair[1] for pair in RADICALS.split()},
    "folded_punctuation": {
        old: new.translate(CHINESE_WIDTH)
        for old, new in (_one_step(0xFE10, 0xFE19) | _one_step(0xFE30, 0xFE6F)).items()
    },
    "folded_half_width": _nfkc(0xFF61, 0xFFDC),  # kana and Hangul; the voiced marks are composed by NFC, which follows
    "folded_unit": _one_step(0x3300, 0x33FF),  # spelled as they are typed: kg of ㎏, 株式会社 of ㍿
    "folded_ligature": _nfkc(0xFB00, 0xFB06),
    "folded_space": dict.fromkeys(
        "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", " "
    ),
}
TABLES = {kind: str.maketrans(table) for kind, table in FOLDED.items()}
ANY = re.compile(f"[{re.escape(''.join(''.join(table) for table in FOLDED.values()))}]")
RUNS = re.compile("|".join(f"(?P<{kind}>[{re.escape(''.join(table))}]+)" for kind, table in FOLDED.items()))


def fold_compatibility(text: str, note: Callable[[str, str, str], None]) -> str:
    """Return `text` with the usual characters for those in FOLDED; what it makes of kana is to be composed by NFC.

    note: told of each run that is replaced its kind, its text, and that with what stands around it.
    """
    if not ANY.search(text):
        return text

    def replace(found: re.Match[str]) -> str:
        kind = found.lastgroup
        assert kind is not None
        around = text[max(found.start() - CONTEXT_CHARACTERS, 0) : found.end() + CONTEXT_CHARACTERS]
        note(kind, found[0], around)
        return found[0].translate(TABLES[kind])

    return RUNS.sub(replace, text)
