"""What an error tells people to type is an option of that command, and does what it says."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.cli import build_parser, main

TEXTS = [f"第{i}篇：今天天气很好，我们去北京大学读书，中国人民在公园散步，{i * 7919}人都来了！" for i in range(400)]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options_of(command: str) -> set[str]:
    actions = build_parser()._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return {name for action in commands.choices[command]._actions for name in action.option_strings}


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    return write_lines("corpus.jsonl", [{"body": text} for text in TEXTS])


def command_line(command: str, corpus: Path, tokenizer: Path, output: Path) -> list[str]:
    """Return a command that reads text."""
    return {
        "sample": ["sample", "--from", str(corpus), "--output", str(output)],
        "clean": ["clean", "--input", str(corpus), "--output", str(output), "--workers", "1"],
        "train-tokenizer": ["train-tokenizer", "--input", str(corpus), "--output", str(output), "--vocab-size", "320"],
        "extend-tokenizer": [
            *("extend-tokenizer", "--input", str(corpus), "--output", str(output)),
            *("--tokenizer", str(tokenizer), "--add", "8"),
        ],
        "preprocess": [
            *("preprocess", "--input", str(corpus), "--output", str(output)),
            *("--tokenizer", str(tokenizer), "--workers", "1"),
        ],
    }[command]  # fmt: skip


READING = ("sample", "clean", "train-tokenizer", "extend-tokenizer", "preprocess")


@pytest.mark.parametrize("command", READING)
def test_options_of_an_error_are_the_commands(
    command: str, corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command_line(command, corpus, tokenizer_directory, tmp_path / "out")
    assert main(given) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    named = OPTION.findall(said)
    assert {"--text-key", "--on-bad-line"} == set(named)
    assert set(named) <= options_of(command)
    if command != "clean":  # which takes seconds; below
        assert main([*given, "--text-key", "body"]) == 0, "what it told to type"
    (tmp_path / "bad.jsonl").write_text(corpus.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    again = command_line(command, tmp_path / "bad.jsonl", tokenizer_directory, tmp_path / "out2")
    assert main([*again, "--text-key", "body"]) == 2
    said = capsys.readouterr().err
    assert "bad.jsonl:401: not JSON" in said
    assert set(OPTION.findall(said)) == {"--on-bad-line"}
    if command != "clean":
        assert main([*again, "--text-key", "body", "--on-bad-line", "skip"]) == 0


def test_files_without_options_of_their_own(
    corpus: Path, tmp_path: Path, tokenizer_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--against of clean and --input of verify are read as they are: no option of theirs is named."""
    (tmp_path / "held.jsonl").write_text('{"content": "x"}\n')
    given = command_line("clean", corpus, tokenizer_directory, tmp_path / "out")
    assert main([*given, "--text-key", "body", "--against", str(tmp_path / "held.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "held.jsonl:1: no text under 'text'" in said
    assert not OPTION.findall(said)


def test_clean_takes_the_option_before_the_configuration(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.toml").write_text('text_key = "content"\n[duplicates]\nnear = false\n')
    given = ["clean", "--workers", "1", "--config", str(tmp_path / "clean.toml"), "--input", str(corpus)]
    assert main([*given, "--output", str(tmp_path / "a")]) == 2
    assert main([*given, "--output", str(tmp_path / "a"), "--text-key", "body"]) == 0


def test_an_array_is_joined_as_its_jobs_say(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*command_line("preprocess", corpus, tokenizer_directory, tmp_path / "out"), "--text-key", "body"]
    assert main([*given, "--num-tasks", "1", "--task-index", "0"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    dropped = OPTION.findall(said.split("without")[1])
    array = {"--num-tasks": "1", "--task-index": "0"}
    left = [part for option, value in array.items() if option not in dropped for part in (option, value)]
    assert main([*given, *left]) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_damaged_set_is_made_again_as_verify_says(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*command_line("preprocess", corpus, tokenizer_directory, tmp_path / "out"), "--text-key", "body"]
    assert main(given) == 0
    with open(tmp_path / "out" / "00000.bin", "r+b") as file:
        file.write(b"\x10\x20")
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert "remove the set and preprocess again" in capsys.readouterr().out
    assert main(given) == 0
    assert "to make it again, remove it first" in capsys.readouterr().out
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert main(given) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_the_largest_vocabulary_works(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train-tokenizer", "--input", str(corpus), "--text-key", "body", "--output", str(tmp_path / "out")]
    assert main([*given, "--vocab-size", "32768"]) == 2
    largest = capsys.readouterr().err.split("the largest that works is ")[1].split()[0].rstrip(";")
    assert main([*given, "--vocab-size", largest]) == 0


def test_a_taken_held_out_folder_names_its_own_option(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    assert main(["clean", "--input", str(corpus), "--text-key", "body", "--heldout", str(tmp_path / "held")]) == 2
    assert "choose another --heldout" in capsys.readouterr().err
