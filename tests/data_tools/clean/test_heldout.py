"""No corpus of a recipe is trained on what was held out of it or of another: equal texts, and near copies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmbert.config.load import load_recipe
from cmbert.errors import ConfigError
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, DuplicatesConfig, NormalizeConfig, QualityConfig, load_clean_config
from data_tools.clean.text.letters import MOST_OWNERS, HeldOutTexts, canonical_letters, heldout_key, sketch
from data_tools.clean.text.normalization import normalizer
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.input.sample import sample

LARGE = Path(__file__).parents[3] / "recipes" / "large"
CORPORA = [Path(source.path).name for source in load_recipe(LARGE / "stage1.toml").data.sources]
SHARE = 0.3  # of a few texts, so that there are enough
NUM_TEXTS = 30


def prose(number: int) -> str:
    """Return a text of sentences that no other has, with what the configurations treat in different ways."""
    draw = np.random.default_rng(number)
    sentences = ["".join(chr(0x4E00 + int(code)) for code in draw.integers(0, 9_000, 18)) for _ in range(14)]
    sentences[2] += f"<b>见</b>https://example.com/{number}?a=1"
    sentences[5] += f"（联系a{number}@example.com，ＡＢＣ{number}）"
    sentences[9] += "<img src='a.png' alt='一张很好看的图片'>&nbsp;"
    return "。".join(sentences) + "。"


def near_copy(text: str) -> str:
    """Return `text` with a sentence more and a few characters changed, as another site has it."""
    return "本文转载自其他网站，" + text.replace("。", "，", 2)[:-9] + "未完待续。"


def texts_of(directory: Path) -> list[str]:
    return [document.text for document in DocumentReader(whole_files(input_files([str(directory)])))]


def shingles(text: str) -> set[str]:
    letters = "".join(c for c in text if "\u4e00" <= c <= "\u9fff")
    return {letters[i : i + 8] for i in range(len(letters) - 7)}


def similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


@pytest.fixture
def raw(write_lines: Callable, tmp_path: Path) -> dict[str, Path]:
    """Three corpora: texts of their own, all texts of the others as near copies, a third of them raw and equal."""
    numbers = {name: range(NUM_TEXTS * i, NUM_TEXTS * (i + 1)) for i, name in enumerate(CORPORA)}
    found = {}
    for name, own in numbers.items():
        texts = [prose(number) for number in own]
        for other in CORPORA:
            if other != name:
                texts += [near_copy(prose(number)) for number in numbers[other]]
                texts += [prose(number) for number in numbers[other][::3]]
        found[name] = write_lines(f"{name}.jsonl", [{"text": text} for text in texts])
    return found


def config_of(name: str) -> CleanConfig:
    return replace(load_clean_config(LARGE / "clean" / f"{name}.toml"), heldout_share=SHARE)


def test_no_corpus_of_large_is_trained_on_held_out_text(raw: dict[str, Path], tmp_path: Path) -> None:
    """As recipes/large/README.md says: hold out of every corpus, then clean each against all that was held out."""
    heldout = tmp_path / "heldout"
    for name in CORPORA:
        clean([str(raw[name])], config=config_of(name), heldout=heldout / name)
    for name in CORPORA:
        clean([str(raw[name])], tmp_path / "text" / name, config=config_of(name), against=[str(heldout)])
    held = [shingles(text) for name in CORPORA for text in texts_of(heldout / name)]
    assert len(held) > 20
    trained = {name: texts_of(tmp_path / "text" / name) for name in CORPORA}
    for name, texts in trained.items():
        assert len(texts) > 12, "most of the corpus stays"
        worst = max(similarity(shingles(text), part) for text in texts for part in held)
        assert worst < 0.5, name
        report = json.loads((tmp_path / "text" / name / "report.json").read_text(encoding="utf-8"))
        assert report["dropped"][name]["held_out"] > 5
        assert report["dropped"][name]["near_held_out"] > 10


def test_what_is_held_out_does_not_depend_on_normalisation() -> None:
    configs = [CleanConfig().normalize, *(config_of(name).normalize for name in CORPORA)]
    configs.append(NormalizeConfig(fold_width=False, strip_html=False, emails="keep", squeeze_spaces=False))
    configs.append(NormalizeConfig(urls="replace", emails="remove"))
    for number in range(30):
        text = prose(number)
        assert {canonical_letters(normalizer(config)(text)) for config in configs} == {canonical_letters(text)}
    few = "联系 a@b.cn，详见 http://x.cn/y，谢谢支持"  # all of its letters count
    assert {canonical_letters(normalizer(config)(few)) for config in configs} == {canonical_letters(few)}
    english = [f"An English text, number {number}, with next to no 汉字." for number in range(50)]
    assert len({heldout_key(canonical_letters(text)) for text in english}) == 50


def test_held_out_text_alone_is_what_one_call_would_set_aside(raw: dict[str, Path], tmp_path: Path) -> None:
    config = replace(config_of("cci3_hq"), duplicates=DuplicatesConfig(near=False))
    text = str(raw["cci3_hq"])
    clean([text], tmp_path / "all", config=config, heldout=tmp_path / "aside")
    clean([text], config=config, heldout=tmp_path / "alone")
    assert sorted(texts_of(tmp_path / "alone")) == sorted(texts_of(tmp_path / "aside"))


def looked_up(folder: Path, held_out: list[str]) -> HeldOutTexts:
    HeldOutTexts.write(folder, map(sketch, held_out))
    return HeldOutTexts(folder)


def test_what_equals_or_repeats_a_held_out_text_is_told_from_what_does_not(tmp_path: Path) -> None:
    short = "这家酒店离地铁站很近，房间打扫得很干净，下次还会再来。"
    known = looked_up(tmp_path, [*map(prose, range(20)), short])
    page = "".join(prose(number) for number in range(200, 230))
    for number in range(20):
        assert known.relation(prose(number)) == "held_out"
        assert known.relation(near_copy(prose(number))) == "near_held_out"
        assert known.relation(page + prose(number) + page) == "near_held_out", "within a page sixty times as long"
        assert known.relation(prose(number)[60:]) == "near_held_out", "a part of it"
    assert known.relation(f"<p>{short}</p> http://a.cn/b") == "held_out"
    assert known.relation(short.replace("很近", "很远")[:-3]) is None, "too short to tell by its grams"
    for number in range(1000, 1100):
        assert known.relation(prose(number)) is None
        assert known.relation(prose(number) + prose(number % 20)[:80]) is None, "a sentence in common"
    assert known.relation("") is None


def test_a_phrase_of_the_trade_tells_nothing(tmp_path: Path) -> None:
    notice = "本公司及董事会全体成员保证信息披露的内容真实准确完整没有虚假记载误导性陈述或重大遗漏并承担个别及连带责任"
    known = looked_up(tmp_path, [notice + prose(number) for number in range(MOST_OWNERS + 1)])
    assert known.relation(notice + notice[::-1]) is None
    assert looked_up(tmp_path, [notice + prose(0)]).relation(notice + "以上就是今天公告的全文") == "near_held_out"


def test_nothing_held_out_drops_nothing(tmp_path: Path) -> None:
    assert looked_up(tmp_path, []).relation(prose(1)) is None


def test_mistakes(write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, config = str(write_lines("few.jsonl", [{"text": prose(number)} for number in range(12)])), CleanConfig()
    config = replace(config, heldout_share=SHARE)
    with pytest.raises(ConfigError, match="name --output, or --heldout alone"):
        clean([text], config=config)
    clean([text], config=config, heldout=tmp_path / "held")
    clean([text], config=config, heldout=tmp_path / "held")
    assert "done already" in capsys.readouterr().out
    clean([text], tmp_path / "out", config=config, against=[str(tmp_path / "held")])
    with pytest.raises(ConfigError, match=r"other settings \(against\)"):
        clean([text], tmp_path / "out", config=config, against=[text])


def test_a_sample_holds_its_share_of_what_clean_holds_out(write_lines: Callable, tmp_path: Path) -> None:
    """`sample` has taken its own held-out texts away; that must not take clean's."""
    texts = [canonical_letters(prose(number)) for number in range(400)]  # titles, verses: no mark, only letters
    sample(str(write_lines("texts.jsonl", [{"text": text} for text in texts])), tmp_path / "text", size_bytes=10**9)
    config = CleanConfig(heldout_share=0.05, quality=QualityConfig(min_characters=1))
    clean([str(tmp_path / "text" / "train.jsonl")], config=config, heldout=tmp_path / "held")
    assert 8 <= len(texts_of(tmp_path / "held")) <= 32, "19 are due"
