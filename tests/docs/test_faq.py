"""Every answer of docs/faq.md names what holds it, and that is there."""

import re

from tests.docs.documents import ROOT

PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
ANSWERS = re.split(r"\n\n(?=\*\*)", PAGE)[1:]


def test_every_answer_names_a_test_or_the_code_that_is_there() -> None:
    for answer in ANSWERS:
        files = re.findall(r"\b(?:tests|cmbert|data_tools)/[\w/]+\.py", answer)
        assert files or "recipes/" in answer, answer
        assert all((ROOT / name).is_file() for name in files), answer
        text = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
        for test in re.findall(r"`(test_\w+)`", answer):
            assert f"def {test}(" in text, test


def test_answers_are_short() -> None:
    for answer in ANSWERS:
        assert answer.split("\n\n")[0].count("\n") < 6, answer
