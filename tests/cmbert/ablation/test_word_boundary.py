"""The word-boundary task that recipes/ablations/word_boundary.py makes from text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.transfer.tasks.examples import read_split
from cmbert.transfer.tasks.task import find_task
from data_tools.encoding.segment import segmenter
from tests.conftest import SENTENCES

PROGRAM = "recipes/ablations/word_boundary.py"


def make(text: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAM, "--text", str(text), "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that name themselves in Hanzi, each twice."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = [
        f"第{'一二三四五六七八九十'[n // 10]}{'甲乙丙丁戊己庚辛壬癸'[n % 10]}篇" + SENTENCES[n % 5] for n in range(100)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 2), encoding="utf-8")
    return path


def test_places_are_jiebas_and_splits_share_no_document(text: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    sizes = ("--sizes", "80", "40", "20")
    for output, seed in ((first, "0"), (again, "0"), (other, "1")):
        assert make(text, output, *sizes, "--seed", seed).returncode == 0
    task, documents = find_task("recipes/ablations/word_boundary.toml"), {}
    texts = {json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()}
    cut = segmenter().cut
    for split, size in (("train", 80), ("dev", 40), ("test", 20)):
        found = read_split(task, first, split)
        assert found is not None
        assert sorted(example.label for example in found.examples) == [0] * (size // 2) + [1] * (size // 2)
        documents[split] = set()
        for example in found.examples:
            ((left, right),) = example.parts
            sources = {whole for whole in texts if left + right in whole}
            for whole in sources:
                at = whole.index(left + right) + len(left)
                words = cut(whole)
                ends = [sum(map(len, words[:count])) for count in range(len(words))]
                assert (at in ends) == example.label
            documents[split] |= sources if len(sources) == 1 else set()
        assert (first / f"{split}.json").read_bytes() == (again / f"{split}.json").read_bytes()
        assert (first / f"{split}.json").read_bytes() != (other / f"{split}.json").read_bytes()
    assert all(documents.values())
    assert not documents["train"] & documents["dev"] | documents["test"] & (documents["train"] | documents["dev"])


def test_too_little_text_is_one_line(text: Path, tmp_path: Path) -> None:
    done = make(text, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("100 documents are too few for (4000, 2000, 2000) examples; give more")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
