"""How much is held out without being told: enough documents to compare models by; too few are said aloud."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.clean import share as module
from data_tools.clean.config import CleanConfig
from data_tools.clean.share import documents_about, few_held_out, share_in_force

HANZI = "今天天气很好我们去公园散步他在北京大学读书"


@pytest.mark.parametrize(("documents", "share"), [(100, 0.1), (5_000, 0.1), (10_000, 0.05), (30_000, 1 / 60)])
def test_a_small_corpus_holds_out_enough_documents(write_lines: Callable, documents: int, share: float) -> None:
    path = write_lines("corpus.jsonl", [{"body": f"文{number}"} for number in range(documents)])
    assert share_in_force(CleanConfig(text_key="body"), [path]) == pytest.approx(share)
    assert share_in_force(CleanConfig(heldout_share=0.3), [path]) == 0.3


def test_the_documents_of_a_large_corpus_are_estimated(write_lines: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [{"text": f"{number}" + "文" * 1_000} for number in range(4_000)]
    files = [write_lines(f"{part}.jsonl", texts) for part in range(4)]
    monkeypatch.setattr(module, "LOOKED_AT_BYTES", 12_000_000)
    assert documents_about(CleanConfig(), files) == pytest.approx(16_000, rel=0.5)  # the last task of a file is smaller
    monkeypatch.setattr(module, "documents_about", lambda *_: 10**9)
    assert share_in_force(CleanConfig(), files) == 0.001


def report(kept: int, held_out: int, share: float, **settings: str) -> dict:
    return {
        "settings": settings, "heldout_share": share, "kept": {"a": {"documents": kept}}, "held_out": held_out,
    }  # fmt: skip


def test_too_few_are_said() -> None:
    assert few_held_out(report(9_000, 100, 0.01)) == ""
    assert "only 10 documents" in few_held_out(report(9_000, 10, 0.01))
    assert "heldout_share = 0.12 into" in few_held_out(report(9_000, 10, 0.01))
    assert "only 30 documents" in few_held_out(report(30, 0, 0.1, only="held out"))
    assert "give more text" in few_held_out(report(90, 9, 0.1))


def test_what_clean_says_of_few_documents(
    write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, and its remedy: the share it names is enough."""
    from data_tools.cli import main

    lines = [{"text": "".join(HANZI[(number >> shift) % 16] for shift in range(24))} for number in range(1_000)]
    given = ["clean", "--workers", "1", "--input", str(write_lines("corpus.jsonl", lines))]
    config = tmp_path / "clean.toml"
    rules = "[quality]\nmin_characters = 1\nmax_repeated_share = 1.0\n[duplicates]\nnear = false\n"
    config.write_text("heldout_share = 0.01\n" + rules)
    assert main([*given, "--config", str(config), "--heldout", str(tmp_path / "few")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{tmp_path / 'few'}: only ")
    share = said.split("heldout_share = ")[1].split()[0]
    config.write_text(f"heldout_share = {share}\n" + rules)
    assert main([*given, "--config", str(config), "--heldout", str(tmp_path / "more")]) == 0
    assert "only" not in capsys.readouterr().out
    record = json.loads((tmp_path / "more" / "report.json").read_text(encoding="utf-8"))
    assert record["heldout_share"] == float(share)
