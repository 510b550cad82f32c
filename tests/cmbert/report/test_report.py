"""The report page: what it shows of one run, of stages, of a half-finished run; what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cmbert.errors import CheckpointError, ConfigError
from cmbert.html.charts import decimate, smooth
from cmbert.report.page import write_report
from cmbert.report.stages import read_stages
from cmbert.report.steps import time_bands
from tests.cmbert.report.made_run import EVALUATION, add_numbers, make_run, write


def page_of(run: Path) -> str:
    output = run.parent / "pages" / "report.html"
    write_report(run, output)
    page = output.read_text(encoding="utf-8")
    assert [path.name for path in output.parent.iterdir()] == ["report.html"], "nothing is left aside"
    check_is_one_whole_page(page)
    return page


def check_is_one_whole_page(page: str) -> None:
    """Every tag is closed, ids are unique, no stand-in colour is left, and nothing is loaded from elsewhere."""
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in ("meta", "link"):
                open_tags.append(tag)
            assert tag not in ("script", "img", "iframe")

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert not open_tags
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r"#0[123]0", page)
    assert all(target.startswith("#") or target == "data:," for target in re.findall(r'(?:href|src)="([^"]+)"', page))


def test_one_run_without_evaluation(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    for text in ("Training loss", "1,234", "41k", "20.0<small>s", "one stage · 40 steps", "25.00 %", "80.00 %"):
        assert text in page
    for text in ("Held-out", "unigram", "Gap", "Fill in the mask", "Where the time went"):
        assert text not in page
    assert page.count("<svg") == 6  # the loss, wide and narrow; learning rate, mask rate, speed, gradient norm
    assert "tokens seen</text>" in page, "real text, not outlines"


def test_figures_and_facts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write(run / "eval.json", EVALUATION)
    write(run / "summary.json", {"seconds": {"shards": 7.5, "stage1": 240.0}, "masked_accuracy": None})
    page = page_of(run)
    for text in ("6.612", "7.750", "1.138", "13.1", "held-out 6.61", "unigram 7.75", "4.1<small>min", "20.0 s of it"):
        assert text in page
    assert "<td>6.431  (6,117)</td>" in page
    assert 'width:3.1%"></i><b>7.5 s' in page
    for text in ("model.num_layers</th><td>4<", "8,192", "zero1.json", ">012345678<", "torch</th><td>2.13.0<"):
        assert text in page
    for text in ("node-of-ours", "somebody", "apex"):
        assert text not in page


def test_held_out_loss_of_mid_training_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_report(run, tmp_path / "before.html")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for step in (9, 19, 39):
        lines[step] = json.dumps({**json.loads(lines[step]), "heldout_loss": 8.0, "heldout_accuracy": 0.1})
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    write_report(run, tmp_path / "after.html")
    before, after = ((tmp_path / name).read_text(encoding="utf-8") for name in ("before.html", "after.html"))
    assert "dots: held-out" not in before
    assert "dots: held-out" in after
    assert np.isfinite(read_stages(run)[0]["heldout_loss"]).nonzero()[0].tolist() == [9, 19, 39]


def test_where_the_time_of_a_step_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "a step's time" not in page_of(run), "a run of before"
    add_numbers(run, mfu=0.4321)
    page = page_of(run)
    # Of 0.5 s: 0.1 waiting, 0.1 forward, 0.2 backward, 0.05 optimizer, and the rest of step_seconds.
    for text in ("waiting for data 20 %", "forward 20 %", "backward 40 %", "optimizer 10 %", "the rest 10 %"):
        assert f"{text}</span>" in page
    for text in ("milliseconds per step", "communication, within them", "43.2<small>%", "12.34<small>GB"):
        assert text in page
    assert "Loss of each source" not in page, "one list, never written"
    assert page.count('aria-label="step time"') == 2  # wide and narrow
    for number in range(1, 6):
        assert f"fill: var(--phase-{number})" in page
    add_numbers(run, communication_seconds=0.0)
    assert "communication, within them" not in page_of(run)


def test_a_run_that_was_continued_by_a_newer_program(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_numbers(run, first_step=25, source_loss=[3.0, None])
    page = page_of(run)
    tokens, bands = time_bands(read_stages(run)[0])
    assert len(tokens) == 15
    assert bands[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.05, 0.05])
    assert "Where a step's time goes" in page
    assert "MFU" not in page, "on a CPU there is none"


def test_loss_of_each_source(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    names = [f"<s{number}>" for number in range(9)]
    sources = "".join(f'[[data.sources]]\npath = "shards/{name}"\n' for name in names)
    with open(run / "resolved.toml", "a", encoding="utf-8") as file:
        file.write(sources)
    add_numbers(run, source_tokens=[9, 8, 7, 6, 1, 5, 4, 3, 2], source_loss=[*[4.0] * 8, None])
    page = page_of(run)
    assert "the 8 largest of 9" in page
    assert "</i>&lt;s5&gt;</span>" in page
    assert "</i>&lt;s4&gt;</span>" not in page, "the smallest is left out"
    assert page.count('aria-label="source loss"') == page.count('aria-label="step time"') == 1, "side by side"
    assert read_stages(run)[0].source_loss.shape == (40, 9)


@pytest.mark.parametrize("spelled", ["NaN", "Infinity", "null"])
def test_steps_that_were_not_finite_leave_gaps(tmp_path: Path, spelled: str) -> None:
    run = make_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    for step in (0, 7, 39):  # the last one, too
        lines[step] = re.sub(r'("loss"|"grad_norm"): [^,]+', rf"\1: {spelled}", lines[step])
    path.write_text("\n".join(lines), encoding="utf-8")
    page = page_of(run)
    assert "nan" not in page.lower()
    loss = read_stages(run)[0]["loss"]
    assert np.flatnonzero(np.isnan(loss)).tolist() == [0, 7, 39]
    assert np.flatnonzero(np.isnan(smooth(loss))).tolist() == [0], "the others go on after a gap"
    tokens, drawn = decimate(np.arange(40), loss)
    assert len(tokens) == len(drawn) == 37
    for step in range(40):
        lines[step] = re.sub(r'"loss": [^,]+', f'"loss": {spelled}', lines[step])
    path.write_text("\n".join(lines), encoding="utf-8")
    assert "not finite" in page_of(run)


def test_chinese_is_shown_and_markup_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>测试 & ${title}")
    filled = {
        "text": "酒店的[MASK]很好<script>",
        "predictions": [{"token": "<i>", "score": 0.314}],
        "filled": "酒店的服务很好",
    }
    write(run / "fill_mask.json", [filled])
    write(run / "summary.json", {"seconds": {"<phase>": 1.0}})
    page = page_of(run)
    assert "<h1>&lt;b&gt;测试 &amp; ${title}</h1>" in page
    assert "酒店的<mark>[MASK]</mark>很好&lt;script&gt;" in page
    assert "&lt;i&gt;<small>31 %" in page
    assert "&lt;phase&gt;" in page


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert page_of(run) == page_of(run)


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(CheckpointError, match=r"empty: no metrics\.jsonl .*train first"):
        write_report(tmp_path / "empty", output)
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a folder; name the page"):
        write_report(run, tmp_path)
    (run / "eval.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"eval\.json: found .*, must be an object"):
        write_report(run, output)
    (run / "eval.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"eval\.json: not valid JSON"):
        write_report(run, output)
    write(run / "eval.json", {})
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 40, "loss": 1.0}\n')
    with pytest.raises(CheckpointError, match="a record lacks 'tokens'"):
        write_report(run, output)
    assert not output.exists()


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=20_000)
    add_numbers(run, source_loss=[3.0, 4.0])
    assert len(page_of(run)) < 700_000


def test_what_it_saw(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "What it saw" in page
    assert "87.50 %" in page  # 700 of 800 tokens of a step
    assert "8 or more" in page
    assert "<td>3</td>" in page  # skipped rows


def test_what_happened_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "What happened" not in page_of(run)
    event = {"time": 1e9, "kind": "spike", "step": 3, "text": "step 3: spike: loss <9>"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    page = page_of(run)
    assert "What happened" in page
    assert "step 3: spike: loss &lt;9&gt;" in page
