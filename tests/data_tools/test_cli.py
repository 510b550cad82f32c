"""The command line: help is instant and whole; a mistake is one line, exit 2, nothing half-written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.cli import main

COMMANDS = ("sample", "clean", "train-tokenizer", "extend-tokenizer", "preprocess", "verify", "inspect", "merge")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    assert "DIR" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, data_tools.cli; data_tools.cli.build_parser()\n"
        "assert not {'numpy', 'tokenizers', 'jieba', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_whole_way(write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"第{i}篇：今天天气很好，我们去北京大学读书。中国人民在公园散步！" for i in range(200)]
    corpus = write_lines("corpus.jsonl", [{"text": text} for text in texts])
    text, tokenizer, shards = (str(tmp_path / name) for name in ("text", "tokenizer", "shards"))
    train = ["--input", f"{text}/train.jsonl"]
    assert main(["sample", "--from", str(corpus), "--output", text]) == 0
    assert main(["train-tokenizer", *train, "--vocab-size", "320", "--output", tokenizer]) == 0
    assert main(["preprocess", *train, "--tokenizer", tokenizer, "--output", shards, "--workers", "1"]) == 0
    assert "characters per token" in capsys.readouterr().out.splitlines()[-1]
    assert main(["verify", shards, "--tokenizer", tokenizer]) == 0
    assert main(["inspect", shards]) == 0
    assert main(["inspect", shards, "--document", "0", "--tokenizer", tokenizer]) == 0
    assert "|篇|：|今天天气" in capsys.readouterr().out
    assert main(["merge", shards, "--output", str(tmp_path / "merged")]) == 0
    (tmp_path / "shards/00000.words").unlink()
    assert main(["verify", shards]) == 1
    assert capsys.readouterr().out.endswith("1 faults\n")


def bad_command_lines(tmp_path: Path, corpus: Path, tokenizer: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines and a part of what each must say."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "好"}\n{"text": 5}\n', encoding="utf-8")
    (tmp_path / "utf8.jsonl").write_bytes(b'{"text": "\xc3"}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    train = ["train-tokenizer", "--vocab-size", "320", "--output", str(tmp_path / "out"), "--input"]
    make = ["preprocess", "--output", str(tmp_path / "out"), "--workers", "1", "--tokenizer"]
    given = ["--input", str(corpus)]
    return {
        "missing input": ([*train, str(tmp_path / "none.jsonl")], "none.jsonl"),
        "empty input": ([*train, str(tmp_path / "empty.jsonl")], "empty"),
        "no text": ([*train, str(tmp_path / "bad.jsonl")], "bad.jsonl:2: no text"),
        "not UTF-8": (
            [*make, str(tokenizer), "--input", str(tmp_path / "utf8.jsonl")],
            "utf8.jsonl:1: not valid UTF-8",
        ),
        "no such key": ([*train, str(corpus), "--text-key", "body"], "no text under 'body'"),
        "vocabulary": (["train-tokenizer", *given, "--output", "x", "--vocab-size", "100000"], "99968 or 100032"),
        "no tokenizer": ([*make, str(tmp_path), *given], "train-tokenizer"),
        "broken tokenizer": ([*make, str(tmp_path / "broken"), *given], "not a tokenizer.json"),
        "taken output": (["sample", "--from", str(corpus), "--output", str(tmp_path / "taken")], "has no sample.json"),
        "unknown hub set": (["sample", "--from", f"hf:{tmp_path}/none", "--output", str(tmp_path / "out")], "hf:"),
        "no shard set": (["inspect", str(tmp_path)], "not a shard set"),
        "nothing to merge": (["merge", str(tmp_path), "--output", str(tmp_path / "out")], "not a shard set"),
    }


CASES = (
    "missing input",
    "empty input",
    "no text",
    "not UTF-8",
    "no such key",
    "vocabulary",
    "no tokenizer",
    "broken tokenizer",
    "taken output",
    "unknown hub set",
    "no shard set",
    "nothing to merge",
)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(
    case: str,
    write_lines: Callable,
    tokenizer_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    corpus = write_lines("corpus.jsonl", [{"text": "今天天气很好。"}])
    cases = bad_command_lines(tmp_path, corpus, tokenizer_directory)
    assert set(cases) == set(CASES)
    arguments, message = cases[case]
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("data_tools: error: ")
    assert message in errors[0]
    assert sorted(tmp_path.iterdir()) == before


def test_no_traceback_from_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools", "verify", str(tmp_path), "--tokenizer", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert subprocess.run([*command[:4], "--fast"], capture_output=True, check=False).returncode == 2


NUMBERS = ("0", "-1", "1.5", "nan", "inf", "", "³", "1e3", "x")
MAKE = ["preprocess", "--input", "a.jsonl", "--tokenizer", "t", "--output", "o"]
TRAIN = ["train-tokenizer", "--input", "a.jsonl", "--output", "o"]
EXTEND = ["extend-tokenizer", "--tokenizer", "t", "--input", "a.jsonl", "--add", "8", "--output", "o"]


@pytest.mark.parametrize(
    "arguments",
    [
        *([*command, option, value] for value in NUMBERS for command, option in (
            (["sample", "--output", "o"], "--size"), (["clean", "--input", "a.jsonl", "--output", "o"], "--workers"),
            (MAKE, "--workers"), (MAKE, "--shard-tokens"), (MAKE, "--num-tasks"), (TRAIN, "--sample-size"),
            (EXTEND, "--add"),
        )),
        *([*command, option, value] for value in ("1.5", "nan", "", "x") for command, option in (
            (MAKE, "--task-index"), (TRAIN, "--vocab-size"), (["inspect", "d"], "--document"),
        )),
        *([*command, "--output", value] for value in ("", ".", "/", "..", "a/..") for command in (
            ["sample"], ["clean", "--input", "a"], MAKE[:-2], TRAIN[:-2], EXTEND[:-2], ["merge", "a"],
        )),
        ["clean", "--input", "a", "--heldout", ""],
    ],
    ids=lambda arguments: " ".join([arguments[0], *arguments[-2:]]),
)  # fmt: skip
def test_values_that_cannot_be(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {arguments[-2]}: " in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MAKE, "--num-tasks", "2", "--task-index", "2"], "--task-index 2: --num-tasks 2 allows 0 to 1"),
        ([*MAKE, "--num-tasks", "2", "--task-index", "-1"], "--task-index -1: --num-tasks 2 allows 0 to 1"),
        ([*MAKE, "--num-tasks", "2"], "give both"),
        ([*MAKE, "--task-index", "0"], "give both"),
        ([*TRAIN, "--vocab-size", "0"], "the smallest is 320"),
        ([*TRAIN, "--vocab-size", "-64"], "the smallest is 320"),
        ([*TRAIN, "--vocab-size", "321"], "320 or 384"),
        (["sample", "--from", "hf:", "--output", "o"], "--from hf: names no data set"),
        (["sample", "--from", "", "--output", "o"], "no .jsonl"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())
