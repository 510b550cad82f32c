"""What the documents point at is there: files, headings, variables of the job scripts, fields of the metrics."""

import re
from pathlib import Path

import pytest

from tests.docs.documents import ROOT, documents

DOCUMENTS = documents()
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_another() -> None:
    linked = {
        (path.parent / link.partition("#")[0]).resolve()
        for path in DOCUMENTS
        for link in LINK.findall(path.read_text(encoding="utf-8"))
    }
    assert not [name_of(path) for path in (ROOT / "docs").glob("*.md") if path.resolve() not in linked]


def test_variables_of_the_jobs_are_those_of_the_scripts() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "slurm").iterdir() if path.is_file())
    for path in DOCUMENTS:
        for name in re.findall(r"\bCMBERT_[A-Z_]+", path.read_text(encoding="utf-8")):
            assert name in scripts, f"{name_of(path)}: {name}"
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "slurm").glob("*.sh"))
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(CMBERT_[A-Z_]+)`", page)) == set(re.findall(r"\bCMBERT_[A-Z_]+\b", code))


def test_fields_of_a_step_are_written_by_the_trainer() -> None:
    page = (ROOT / "docs" / "run_directory.md").read_text(encoding="utf-8")
    table = page.partition("## Numbers of a step")[2].partition("\n## ")[0]
    rooms = [ROOT / "cmbert" / room for room in ("train", "runs")]
    code = "".join(path.read_text(encoding="utf-8") for room in rooms for path in room.glob("*.py"))
    fields = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert len(fields) > 10
    timed = {f"{name}_seconds" for name in re.findall(r'"(\w+)"', code)}
    assert not [name for name in fields if name not in timed and f'"{name}"' not in code]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_tree_has_every_room(name: str) -> None:
    tree = (ROOT / name).read_text(encoding="utf-8").partition("├──")[2].partition("```")[0]
    rooms = [path.name for package in ("cmbert", "data_tools") for path in (ROOT / package).iterdir() if path.is_dir()]
    assert not [room for room in rooms if not room.startswith("_") and f"{room}/" not in tree]
