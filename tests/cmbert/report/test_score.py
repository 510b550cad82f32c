"""The score at the head of the page: the run's own where nobody called `cmbert eval`."""

from pathlib import Path

import pytest

from cmbert.data.shards.shard_set import ShardSet
from cmbert.evaluate.unigram import UNIGRAM_FILE, unigram_loss
from cmbert.report.page import write_report
from cmbert.tokenizer import Tokenizer
from tests.cmbert.report.made_run import EVALUATION, add_numbers, make_run, write


@pytest.fixture
def run(tmp_path: Path, shards: Path, tokenizer: Tokenizer) -> Path:
    """A run on real shards that scored a held-out set in its second half."""
    run = make_run(tmp_path / "run")
    text = (run / "resolved.toml").read_text(encoding="utf-8").replace("8192", str(tokenizer.vocab_size))
    (run / "resolved.toml").write_text(f'{text}[[data.sources]]\npath = "{shards}"\n', encoding="utf-8")
    add_numbers(run, source_tokens=[700], source_loss=[3.0])
    add_numbers(run, first_step=20, heldout_loss=2.25, heldout_accuracy=0.125)
    return run


def page_of(run: Path) -> str:
    write_report(run, run.parent / "report.html")
    return (run.parent / "report.html").read_text(encoding="utf-8")


def test_a_run_is_headed_by_its_own_score(run: Path, shards: Path, tokenizer: Tokenizer) -> None:
    unigram = unigram_loss([ShardSet(shards)], [1], tokenizer.vocab_size)
    for page in (page_of(run), page_of(run)):  # counted, then as kept
        for text in ("2.250<", "run in training, after step 40", f"{unigram:.3f}<", f"{unigram - 2.25:.3f}<", "12.5<"):
            assert text in page
    assert (run / UNIGRAM_FILE).is_file()


def test_an_evaluation_comes_first_and_lost_shards_are_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (run / "resolved.toml").read_text(encoding="utf-8")
    (run / "resolved.toml").write_text(text.replace("/shards", "/gone"), encoding="utf-8")
    with caplog.at_level("INFO"):
        assert "Gap" not in page_of(run)
    assert "run: no unigram loss: " in caplog.text
    write(run / "eval.json", EVALUATION)
    assert "6.612<" in page_of(run)
