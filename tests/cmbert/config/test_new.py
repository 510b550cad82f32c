"""`cmbert new`: every recipe that it writes loads and explains itself, and what it says to type is right and works."""

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.cli import build_parser, main
from cmbert.commands.new import SIZES
from cmbert.config import new, texts
from cmbert.config.load import load_recipe
from cmbert.config.texts import Amount, measure_texts, texts_by_key
from cmbert.errors import InputError
from data_tools.cli import build_parser as data_tools_parser
from data_tools.input import listing

ROOT = Path(__file__).parents[3]
SHIPPED = {"tiny": "quickstart", "base": "base", "large": "large"}
SENTENCE = "今天天气很好，我们一起去公园散步。"


def printed(said: str) -> list[str]:
    return re.findall(r"^    ((?:cmbert|data_tools) .*)$", said, re.MULTILINE)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_what_it_writes_loads_and_gives_every_reason(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(new.SIZES) == SIZES
    assert main(["new", "我的/mine", "--size", size]) == 0
    for number in (1, 2):
        path = Path(f"我的/mine/stage{number}.toml")
        recipe = load_recipe(path)
        assert recipe.run_directory == f"我的/mine/runs/stage{number}"
        assert recipe.evaluation.shards == "我的/mine/heldout"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if " = " in line and line[0] != "#"]
        assert all(re.search(r" # \S", line) for line in lines)
        assert recipe.train.rows_per_step % recipe.train.micro_batch_rows == 0
    commands = printed(capsys.readouterr().out)
    head = Path("我的/mine/stage1.toml").read_text(encoding="utf-8")
    assert len(commands) == 10
    assert all(f"# {command}\n" in head for command in commands)
    for command in commands:
        program, *words = shlex.split(command)
        (build_parser() if program == "cmbert" else data_tools_parser()).parse_args(words)  # exits if it is wrong
    assert main(["new", "我的/mine", "--size", size]) == 2
    assert "我的/mine/stage1.toml: is there already" in capsys.readouterr().err


@pytest.mark.parametrize("size", SHIPPED)
def test_shapes_are_those_of_the_shipped_recipes(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["new", "mine", "--size", size])
    ours = load_recipe(Path("mine/stage1.toml")), load_recipe(Path("mine/stage2.toml"))
    monkeypatch.chdir(ROOT)
    for number, recipe in enumerate(ours, start=1):
        shipped = load_recipe(f"recipes/{SHIPPED[size]}/stage{number}.toml")
        for key in ("num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size", "max_length"):
            assert getattr(recipe.model, key) == getattr(shipped.model, key), key
        assert recipe.data.context_tokens == shipped.data.context_tokens
    assert ours[0].train.total_tokens == load_recipe(f"recipes/{SHIPPED[size]}/stage1.toml").train.total_tokens


@pytest.mark.parametrize(
    ("megabytes", "size", "passes"), [(0.5, "tiny", 20), (10, "tiny", 4), (1_000, "small", 4), (5_000, "base", 4)]
)
def test_size_vocabulary_and_budget_follow_the_text(megabytes: float, size: str, passes: float) -> None:
    text = Amount(wide=megabytes * 1e6 / 3)
    order = new.plan_order(Path("mine"), None, text, None)
    assert (order.size, order.vocabulary % 64) == (size, 0)
    assert order.tokens == pytest.approx(passes * text.tokens, rel=0.01)
    assert new.plan_order(Path("mine"), None, text, 123_456).tokens == 123_456


def test_vocabularies() -> None:
    assert [new.vocabulary_for(round(size)) for size in (0, 9e6, 9e7, 9e8, 9e10)] == [1024, 8192, 16384, 32768, 32768]


def test_a_huge_text_is_not_for_a_tiny_model_alone() -> None:
    order = new.plan_order(Path("mine"), "tiny", Amount(wide=1e11), None)
    assert order.why_tokens == "1,000 for every parameter"


def test_text_is_measured_through_its_forms(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": SENTENCE * 10}, ensure_ascii=False) + "\n" for _ in range(3000))
    escaped = "".join(json.dumps({"text": SENTENCE * 10}) + "\n" for _ in range(3000))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.json").write_text(escaped, encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / ".hidden.txt").write_text(lines, encoding="utf-8")
    whole = 3000 * 10 * len(SENTENCE)
    for name in ("a.jsonl", "b.json"):
        assert measure_texts([tmp_path / name]).wide == pytest.approx(whole, rel=0.01)
    assert 0.3 * whole < measure_texts([tmp_path / "c.jsonl.gz"]).wide < 3 * whole
    assert measure_texts([tmp_path]).wide > 2.2 * whole


def test_texts_of_several_names_are_cleaned_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jsonl").write_text(json.dumps({"title": "a", "content": SENTENCE}) + "\n", encoding="utf-8")
    (raw / "b.csv.gz").write_bytes(gzip.compress(f"\ufeffnr, review\n1,{SENTENCE}\n".encode()))
    assert main(["new", "mine", "--text", "raw"]) == 2
    assert "a.jsonl: no 'text' in its first line, which has title, content; say --text-key" in capsys.readouterr().err
    assert not Path("mine").exists()
    assert main(["new", "mine", "--text", "raw", "--text-key", "content", "review"]) == 0
    cleaning = [shlex.split(line)[2:] for line in printed(capsys.readouterr().out) if " clean " in line]
    options = [data_tools_parser().parse_args(["clean", *words]) for words in cleaning]
    assert [(o.inputs, o.text_key) for o in options] == 2 * [(["raw/a.jsonl"], "content"), (["raw/b.csv.gz"], "review")]
    assert [str(o.heldout or o.output) for o in options] == [
        f"mine/{part}/{key}" for part in ("heldout_text", "text") for key in ("content", "review")
    ]
    assert texts_by_key([raw / "a.jsonl"], ["review", "content"]) == {"content": [raw / "a.jsonl"]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no", None, "no such file or folder"),
        ("a.doc", b"x", "convert it, or name another file"),
        ("a.txt", b"", "holds no text"),
        ("a.jsonl.gz", b"not gzip", "not gzip"),
    ],
)
def test_what_is_no_text_is_said(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        measure_texts([tmp_path / name])


def test_every_kind_that_clean_reads_is_measured() -> None:
    assert set(texts.SUFFIXES) == set(listing.SUFFIXES)


def test_it_starts_without_torch(tmp_path: Path) -> None:
    code = "import sys; from cmbert.cli import main; main(['new', 'mine']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_what_it_prints_leads_from_text_to_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("snownlp")
    words = ["-m", "data_tools", "sample", "--size", "1500000", "--output", "raw"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    main(["new", "mine", "--text", "raw/train.jsonl", "--tokens", "20000"])
    for command in printed(capsys.readouterr().out):
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "mine" / "export" / "model.safetensors").is_file()
