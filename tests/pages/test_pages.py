"""Every page that a person opens, in a real browser: silent, whole, nothing fetched, readable in light and dark."""

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmbert.ablation.comparison import write_comparison
from cmbert.ablation.lists import load_list, plan_runs
from cmbert.config.load import load_recipe
from cmbert.evaluate.interval import interval
from cmbert.files.whole import write_json
from cmbert.plan.page import write_plan_page
from cmbert.plan.plan import make_plan
from cmbert.report.page import write_report
from cmbert.transfer.finetune.results import write_results
from tests.cmbert.report.made_run import EVALUATION, add_numbers, make_run
from tests.debian import install, require_commands
from tests.pages.browser import Browser, browsing

WIDTHS = (1100, 390)  # CSS pixels: a laptop's window, a telephone
LEAST_CONTRAST = 4.5  # WCAG 2, level AA, for text
DARK, LIGHT = 0.1, 0.8  # luminance of a page: at most, at least (ours)

TEXTS = (
    "今天早上我们一家三口去了城西的植物园，花开得正好，孩子在草地上跑来跑去，玩得满头大汗。",
    "这家酒店离地铁站很近，房间虽然不大，但是打扫得很干净，前台的服务员也非常热情，下次还会再来。",
    "会议指出，要继续推进改革，扩大开放，保持经济平稳增长，切实改善人民群众的生活条件。",
    "计算机科学是研究信息与计算的理论基础，以及它们在计算机系统中如何实现与应用的实用技术的学科。",
)


def run_report(folder: Path) -> Path:
    """`cmbert report` of two stages with everything it can show."""
    stages = folder / "酒店评论"
    make_run(stages / "stage1", num_steps=200)
    make_run(stages / "stage2", num_steps=30, context=1024)
    for number, name in enumerate(("stage1", "stage2"), start=1):
        add_numbers(stages / name, source_loss=[7.1, 6.4], mfu=0.35)
        with open(stages / name / "resolved.toml", "a", encoding="utf-8") as file:
            file.write('[[data.sources]]\npath = "shards/新闻"\n[[data.sources]]\npath = "shards/cci3_hq"\n')
        write_json(stages / name / "eval.json", {**EVALUATION, "heldout_loss": 7.2 - 0.05 * number})
        lines = (stages / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:  # curves that have something to show
            step = record["step"]
            record["loss"] += 0.4 * math.sin(7.0 * step) - (2 if number == 2 else 0)
            record["grad_norm"] += 0.5 * math.sin(11.0 * step) ** 8
            record["tokens_per_second"] += 90 * math.sin(3.0 * step)
            record["learning_rate"] *= 0.05 + abs(math.cos(step / 70))
        (stages / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    event = {"time": 1.79e9, "kind": "spike", "step": 3, "text": "step 3: loss 9.31 is 2.1 above its mean: not taken"}
    (stages / "stage1" / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    guesses = [("服务", 0.31), ("环境", 0.22), ("位置", 0.1), ("早餐", 0.06), ("\n", 0.02)]
    filled = {"text": "这家酒店的[MASK]很好，下次还会来住。", "filled": "这家酒店的服务很好，下次还会来住。"}
    filled["predictions"] = [{"token": token, "score": score} for token, score in guesses]
    write_json(stages / "fill_mask.json", [filled, filled])
    seconds = {"text": 2.0, "tokenizer": 7.3, "shards": 4.0, "stage 1": 210.5, "stage 2": 31.0, "report": 1.5}
    write_json(stages / "summary.json", {"seconds": seconds})
    write_report(stages, folder / "report.html")
    return folder / "report.html"


def tokenizer_report(folder: Path) -> Path:
    """`data_tools train-tokenizer --report --against`, two sources."""
    from data_tools.tokenizer.training import train_tokenizer

    records = [{"text": text * 3, "source": ("新闻", "评论")[i % 2]} for i, text in enumerate(TEXTS * 15)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    legacy = ["[PAD]", "[UNK]", *sorted(set("".join(TEXTS[:2])))]
    (folder / "vocab.txt").write_text("\n".join(legacy), encoding="utf-8")
    page = folder / "tokenizer.html"
    train_tokenizer(
        [str(folder / "texts.jsonl")],
        folder / "tokenizer",
        vocab_size=384,
        report=page,
        against=folder / "vocab.txt",
    )
    return page


def clean_report(folder: Path) -> Path:
    """`data_tools clean` of texts to keep, to hold out, to drop for several reasons, and of lines that are none."""
    from data_tools.clean.clean import clean
    from data_tools.clean.config import CleanConfig

    texts = [*TEXTS, TEXTS[0], "太短了", "This text is in English and says nothing at all. " * 3, TEXTS[1] * 4]
    texts += ["好的！！是吗？？来吧、、去了。。看看！！想说——什么呢，，真的", "很长的网址 https://" + "a" * 300]
    texts += [f"{TEXTS[2]}嗯", *(f"第{i}篇。{TEXTS[i % 4]}{TEXTS[(i * 5 + 3) % 7 % 4]}" for i in range(8))]
    records = [{"text": text, "source": ("cci3_hq", "新闻", "评论")[i % 3]} for i, text in enumerate(texts)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "raw.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    config = CleanConfig(on_bad_line="skip", heldout_share=0.3)
    clean([str(folder / "raw.jsonl")], folder / "clean", config=config, heldout=folder / "heldout")
    return folder / "clean" / "report.html"


def finetune_results(folder: Path) -> Path:
    """`cmbert finetune`'s table of six tasks and three models, with the published rows."""
    for task in ("afqmc", "tnews", "iflytek", "cmnli", "csl", "bustm"):
        for place, model in enumerate(("large-stage2", "bert-base-chinese", "酒店评论-untrained")):
            values = [50 + 8 * place + seed for seed in range(5)]
            splits = {
                "dev": {"examples": 4316, "labelled": True, "majority_share": 69.0, "accuracy": interval(values)},
                "test": {"examples": 3861, "labelled": False},
            }
            setting = {"learning_rate": 3e-5, "batch_size": 32, "epochs": 3}
            result = {"task": task, "model": model, "scores": ["accuracy"], "splits": splits, "setting": setting}
            result |= {"grid": [1] * 10, "train_examples": 34334, "max_length": 128, "texts_cut": 17}
            result |= {"hardware": "NVIDIA H100 80GB HBM3", "seconds": 1234.5}
            epochs = [{"accuracy": 40.0 + 8 * place + epoch} for epoch in range(3)]
            result["curves"] = [{"seed": 0, "train_loss": [1.1, 0.9, 0.8], "dev": epochs}]
            (folder / task / model).mkdir(parents=True)
            write_json(folder / task / model / "result.json", result)
    write_results(folder)
    return folder / "results.html"


LIST = """question = "掩码率该怎么变？"
base = "{base}"
units = ["word", "token"]
arms = [
    {{ name = "curriculum", what = "先升后降，15 % 到 30 % 再回到 15 %: the paper's" }},
    {{ name = "fixed-15", what = "始终 15 %", set.mask = {{ peak_rate = 0.15, warmup_tokens = 0 }} }},
    {{ name = "fixed-30", what = "始终 30 %", set.mask = {{ start_rate = 0.3, end_rate = 0.3, warmup_tokens = 0 }} }},
]
"""


def ablation_page(folder: Path) -> Path:
    """`cmbert ablate`'s comparison of three arms, two seeds."""
    (folder / "list.toml").write_text(
        LIST.format(base=Path("recipes/ablations/small.toml").resolve()), encoding="utf-8"
    )
    ablation = load_list(folder / "list.toml")
    runs = plan_runs(ablation, folder / "list.toml", folder / "sweep", 2)
    for number, run in enumerate(runs):
        (stage,) = run.stages
        make_run(Path(stage.run_directory), num_steps=60)
        lines = (Path(stage.run_directory) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for record in records[9::10]:
            record["heldout_loss"] = 8 - record["step"] / 30 + 0.03 * number
        text = "\n".join(map(json.dumps, records)) + "\n"
        (Path(stage.run_directory) / "metrics.jsonl").write_text(text, encoding="utf-8")
        scores = [
            {"context_tokens": 256, "unit": unit, "heldout_loss": 6.1 + 0.01 * number**2, "bits_per_character": 5.9}
            | {"masked_accuracy": 0.17, "characters_per_token": 1.45}
            for unit in ("word", "token")
        ]
        write_json(run.folder / "score.json", {"scores": scores})
    return write_comparison(folder / "sweep", ablation, runs)


def plan_page(folder: Path) -> Path:
    """`cmbert plan --page` of the large recipe."""
    recipe = load_recipe("recipes/large/stage1.toml", ["run_directory=训练/大模型第一阶段"])
    write_plan_page(make_plan(recipe, 56), folder / "plan.html")
    return folder / "plan.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests here."""
    require_commands({"chromium": "chromium", "fc-list": "fontconfig"})
    if not subprocess.check_output(["fc-list", ":lang=zh-cn", "family"]).strip():
        install("fonts-noto-cjk")
    with browsing() as found:
        yield found


PAGES = (run_report, tokenizer_report, clean_report, finetune_results, ablation_page, plan_page)


@pytest.mark.parametrize("make", PAGES)
def test_a_page_is_silent_whole_and_readable(make: Callable[[Path], Path], browser: Browser, tmp_path: Path) -> None:
    page = make(tmp_path)
    for width in WIDTHS:
        for dark in (False, True):
            view = f"{width} {'dark' if dark else 'light'}"
            seen = browser.show(page, width=width, dark=dark, picture=tmp_path / f"{view}.png")
            assert seen.messages == [], view
            assert seen.requests in ([], ["data:,"]), view
            look = seen.look
            assert look["overflow"] <= 0, view
            assert look["page"] < DARK if dark else look["page"] > LIGHT, view
            assert look["contrasts"][0][0] >= LEAST_CONTRAST, (view, look["contrasts"])
            assert look["texts"] > 20, view
            assert not look["overlaps"] + look["outside"] + look["broken"], (view, look)
            assert look["hanzi"] >= 3, view
            assert look["drawings"] == look["compared"], f"{view}: Hanzi that look alike: boxes of a font without them"


BAD = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><title>x</title>
<body style="background: #fff">{}<p lang="zh-CN">酒店很好</p>"""


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p>well</p>", ""),
        ("<script>console.log('hello')</script>", "messages"),
        ("<script>undefined_thing()</script>", "messages"),
        ("<img src='http://127.0.0.1:9/picture.png'>", "requests"),
        ("<script>setTimeout(() => fetch('http://127.0.0.1:9/late'), 20)</script>", "requests"),
        ("<div style='width: 3000px'>wide</div>", "overflow"),
        ("<p style='color: #999'>faint</p>", "contrasts"),
        ("<svg viewBox='0 0 99 99'><text x='9' y='50'>abc</text><text x='12' y='52'>def</text></svg>", "overlaps"),
        ("<svg width='99' viewBox='0 0 99 99'><text x='90' y='50'>abcdef</text></svg>", "outside"),
        ("<p style='width: 9px; overflow-wrap: anywhere'>broken</p>", "broken"),
        ("<style>@font-face { font-family: box; src: local('none') } p { font-family: box }</style>", ""),
    ],
)
def test_the_browser_sees_what_is_wrong(body: str, fault: str, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(BAD.format(body), encoding="utf-8")
    seen = browser.show(page, width=1100, dark=False, picture=tmp_path / "page.png")
    found = {name: seen.look[name] for name in ("overlaps", "outside", "broken")} | {"messages": seen.messages}
    found["requests"] = [request for request in seen.requests if request != "data:,"]
    found["overflow"] = max(seen.look["overflow"], 0)
    found["contrasts"] = [pair for pair in seen.look["contrasts"] if pair[0] < LEAST_CONTRAST]
    faults = {name for name, value in found.items() if value}
    if fault == "requests":
        faults -= {"messages"}  # nobody answers there, and the console says so
    assert faults == ({fault} if fault else set()), found
    assert seen.look["drawings"] == seen.look["compared"] == seen.look["hanzi"] == 4
