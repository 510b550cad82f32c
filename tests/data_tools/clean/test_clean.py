"""`clean`: one text of each group of duplicates stays, what is removed is counted, a killed run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import data_tools.input.tasks
from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.files.operations import hash_file
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, DuplicatesConfig
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.input.sample import sample
from data_tools.runner import local_workers
from tests.data_tools.clean.texts import GOOD


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    """Distinct texts, exact and near duplicates of some, one that is too short and one in English."""
    texts = [
        f"第{i}号记录：" + "".join(chr(0x4E00 + (i * 7919 + j * j * 131) % 9000) for j in range(200)) + "。"
        for i in range(40)
    ]
    near = [text[:150] + "，" + text[150:] for text in texts[:10]]
    records = [{"text": text, "source": f"s{i % 2}"} for i, text in enumerate([*texts, *texts[5:20], *near])]
    return write_lines(
        "corpus.jsonl", [*records, {"text": "短", "source": "s0"}, {"text": "English " * 9, "source": "s0"}]
    )


def texts_of(directory: Path) -> list[str]:
    return [document.text for document in DocumentReader(whole_files(input_files([str(directory)])))]


def check_twins(corpus: Path, samples: dict) -> None:
    """Each near duplicate's twin is what was kept of its number: the text itself."""
    texts = {document.id: document.text for document in DocumentReader(whole_files([corpus]))}
    for by_reason in samples.values():
        assert len(by_reason["near_duplicate"]) == 3
        for dropped in by_reason["near_duplicate"]:
            assert dropped.keys() == {"id", "text", "twin"}
            assert dropped["text"][:6] == dropped["twin"]["text"][:6]
            assert {dropped["id"], dropped["twin"]["id"]} <= texts.keys()
            assert texts[dropped["id"]] != texts[dropped["twin"]["id"]]
            assert texts[dropped["twin"]["id"]].startswith(dropped["twin"]["text"])
            assert 0.9 < dropped["twin"]["shared"] <= 1  # a comma more is no letter more


def test_duplicates_leave_one_of_each(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean([str(corpus)], tmp_path / "clean", config=CleanConfig())
    found = texts_of(tmp_path / "clean")
    assert len(found) == 40
    assert len({text[:6] for text in found}) == 40
    report = json.loads((tmp_path / "clean/report.json").read_text(encoding="utf-8"))
    total = {reason: sum(by.get(reason, 0) for by in report["dropped"].values()) for reason in report["dropped"]["s0"]}
    assert total == {"too_short": 1, "few_hanzi": 1, "exact_duplicate": 15, "near_duplicate": 10}
    assert sum(counts["documents"] for counts in report["kept"].values()) == 40
    (short,) = report["samples"]["s0"]["too_short"]
    assert (short["text"], short["measured"]) == ("短", 1)
    check_twins(corpus, report["samples"])
    page = (tmp_path / "clean/report.html").read_text(encoding="utf-8")
    assert "near duplicate" in page
    assert "1 characters; dropped with less than 20 characters" in page
    assert "0 % Hanzi; dropped with less than 50 % Hanzi" in page
    assert page.count("kept instead; ") == 6
    assert "English English" in page
    assert not list(tmp_path.glob(".*"))
    capsys.readouterr()
    (tmp_path / ".clean.clean/texts").mkdir(parents=True)  # what a kill leaves that comes after the last rename
    clean([str(corpus)], tmp_path / "clean", config=CleanConfig())
    assert "done already" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ConfigError, match=r"other settings \(config\)"):
        clean([str(corpus)], tmp_path / "clean", config=CleanConfig(source="x"))


def test_what_is_taken_out_of_texts_is_counted(write_lines: Callable, tmp_path: Path) -> None:
    script = "<script>" + "x" * 300 + "</script>"
    texts = [f"<p>{GOOD[0]}</p>{script}", f"{GOOD[1]}a@example.com\u200b", f"当 0<x 时，{GOOD[2]}f(x)>0 成立。"]
    corpus = write_lines("corpus.jsonl", [{"text": text, "source": f"s{i // 2}"} for i, text in enumerate(texts)])
    clean([str(corpus)], tmp_path / "clean", config=CleanConfig())
    found = texts_of(tmp_path / "clean")
    assert found == [GOOD[0], f"{GOOD[1]}<email>", texts[2]]
    removed = json.loads((tmp_path / "clean/report.json").read_text(encoding="utf-8"))["removed"]
    assert removed == {
        "s0": {
            "pieces": {"html_tag": 2, "html_block": 1, "control_character": 1, "email": 1},
            "characters": {"html_tag": 7, "html_block": 317, "control_character": 1, "email": 13},
            "samples": {"html_tag": ["<p>", "</p>"], "html_block": [script[:160]]},
        }
    }
    page = (tmp_path / "clean/report.html").read_text(encoding="utf-8")
    assert "s0: html block" in page
    assert "example.com" not in page


def test_duplicates_are_kept_on_request(corpus: Path, tmp_path: Path) -> None:
    exact = CleanConfig(duplicates=DuplicatesConfig(near=False))
    clean([str(corpus)], tmp_path / "exact", config=exact)
    assert len(texts_of(tmp_path / "exact")) == 50
    both = CleanConfig(duplicates=DuplicatesConfig(near=False, exact=False), source="renamed")
    clean([str(corpus)], tmp_path / "both", config=both)
    assert len(texts_of(tmp_path / "both")) == 65
    assert list(json.loads((tmp_path / "both/report.json").read_text())["kept"]) == ["renamed"]


def test_workers_and_order_of_drops_change_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 3_000)
    for count in (1, 2):
        with local_workers(count) as workers:
            clean([str(corpus)], tmp_path / str(count), config=CleanConfig(), workers=workers)
    one, two = ({path.name: hash_file(path) for path in (tmp_path / name).iterdir()} for name in "12")
    assert one == two
    assert len(one) > 5
    assert len(texts_of(tmp_path / "1")) == 40


def test_a_share_is_set_aside(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, heldout = CleanConfig(heldout_share=0.25), tmp_path / "heldout"
    clean([str(corpus)], tmp_path / "all", config=config)
    clean([str(corpus)], tmp_path / "clean", config=config, heldout=heldout)
    everything, train, aside = (set(texts_of(path)) for path in (tmp_path / "all", tmp_path / "clean", heldout))
    assert train | aside == everything
    assert not train & aside
    assert 4 <= len(aside) <= 16
    assert f"{len(aside)} held out" in capsys.readouterr().out
    report = json.loads((tmp_path / "clean/report.json").read_text(encoding="utf-8"))
    assert report["held_out"] == len(aside) == sum(report["held_out_by_source"].values())
    assert set(report["held_out_by_source"]) <= {"s0", "s1"}
    assert sum(counts["documents"] for counts in report["kept"].values()) == len(train)
    clean([str(corpus)], tmp_path / "clean", config=config, heldout=heldout)
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="lies inside"):
        clean([str(corpus)], tmp_path / "other", config=config, heldout=tmp_path / "other/heldout")
    with pytest.raises(ConfigError, match=r"heldout: exists, but .*other does not"):
        clean([str(corpus)], tmp_path / "other", config=config, heldout=heldout)


def test_an_output_inside_the_input_would_be_read_next_time(write_lines: Callable, tmp_path: Path) -> None:
    folder = write_lines("corpus.jsonl", [{"text": "今天天气很好。"}]).parent
    for output, heldout in ((folder / "clean", None), (None, folder / "a/b"), (tmp_path / "c", folder / "held")):
        with pytest.raises(ConfigError, match=f"lies inside {folder}, which is read as input"):
            clean([str(folder)], output, config=CleanConfig(), heldout=heldout)
    with pytest.raises(ConfigError, match=f"--output {folder}/sample: lies inside"):
        sample(str(folder), folder / "sample", size_bytes=10_000)


def test_nothing_left_and_bad_lines(write_lines: Callable, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": "短"}, b"{"])
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: not JSON"):
        clean([str(corpus)], tmp_path / "clean", config=CleanConfig())
    with pytest.raises(InputError, match="no document is left: too_short 1"):
        clean([str(corpus)], tmp_path / "clean", config=CleanConfig(on_bad_line="skip"))
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize("config", [CleanConfig(), CleanConfig(source="x")])
def test_the_same_output_at_once_is_refused(
    corpus: Path, tmp_path: Path, occupy: Callable[[Path], None], config: CleanConfig
) -> None:
    """Also with another configuration, which would empty the folder that the first works in."""
    clean([str(corpus)], tmp_path / "begun", config=CleanConfig())
    work = tmp_path / ".clean.clean"
    work.mkdir()
    (work / "identity").write_text("of the first", encoding="utf-8")
    occupy(work)
    before = sorted(work.rglob("*"))
    with pytest.raises(CheckpointError, match=r"is written by a run on n7 .*; stop that, or choose another directory"):
        clean([str(corpus)], tmp_path / "clean", config=config)
    assert sorted(work.rglob("*")) == before
    assert not (tmp_path / "clean").exists()


def test_what_another_configuration_began_is_removed(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / ".clean.clean"
    (work / "texts").mkdir(parents=True)
    (work / "texts" / "00000.jsonl.zst").write_bytes(b"torn")
    (work / "identity").write_text("other", encoding="utf-8")
    with caplog.at_level("INFO"):
        clean([str(corpus)], tmp_path / "clean", config=CleanConfig())
    assert caplog.text.count("of another input or configuration: starting over") == 1
    assert len(texts_of(tmp_path / "clean")) == 40
    assert not work.exists()
