"""docs/data_tools.md has every knob of clean with its default, and no other; it names every kind of file."""

import json
import re
from typing import Any

from data_tools.clean.config import dotted_keys
from data_tools.defaults import COMPRESSIONS, KINDS, TXT_DOCUMENTS
from tests.docs.documents import ROOT

PAGE = (ROOT / "docs" / "data_tools.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_.]+)` \| (\S+) \| (.+) \|$", re.MULTILINE)


def written(value: Any) -> str:
    """Return a value as TOML has it."""
    return json.dumps(value)


def test_every_knob_of_clean_is_on_the_page() -> None:
    rows = {key: default for key, default, _ in ROW.findall(PAGE)}
    assert rows == {key: written(value) for key, value in dotted_keys().items()}


def test_every_kind_of_input_is_on_the_page() -> None:
    table = PAGE.split("## Input")[1].split("## sample")[0]
    for name in (*KINDS, ".parquet", *COMPRESSIONS):
        assert f"`{name}`" in table
    for document in TXT_DOCUMENTS[1:]:
        assert f"`--txt-document {document}`" in table
