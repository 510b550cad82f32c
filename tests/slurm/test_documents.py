"""Every line of sbatch in documents and scripts asks for what the site has that it is for: Slurm would start it."""

import re
from collections.abc import Iterator

import pytest

from tests.docs.documents import ROOT, commands, documents
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

SITE_OF = {"nodes of 4 GPUs": "four", "no GPUs": "plain"}  # rows of the page's table; all else is for nodes of 8 GPUs
PAGE = ROOT / "docs" / "slurm.md"


def lines() -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a line stands, the partition it is for, and sbatch's options with the script."""
    for path in documents():
        for command in commands(path):
            words = list(command.words[1:])
            script = next((number for number, word in enumerate(words) if word.startswith("slurm/")), None)
            if command.words[0] == "sbatch" and script is not None:
                yield command.where, "big", words[: script + 1]
    for path in sorted((ROOT / "slurm").glob("*.sh")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := re.match(r"#.*\bsbatch ((?:--\S+ )*slurm/\w+\.sh)", line):
                yield f"{path.name}:{number}", "big", found[1].split()
            if found := re.match(r"CMBERT_STAGE_OPTIONS=\(\) *# (.*)", line):
                yield f"{path.name}:{number}", "four", [*found[1].split(), "slurm/stage1.sh"]
    for row in PAGE.read_text(encoding="utf-8").partition("| site |")[2].partition("\n\n")[0].splitlines()[2:]:
        site, options = row.strip("| ").split(" | ", 1)
        for script in ("slurm/stage1.sh", "slurm/stage2.sh"):
            yield f"{PAGE.name}: {site}", SITE_OF.get(site, "big"), [*options.split("`")[1].split(), script]


LINES = list(lines())


def test_every_kind_of_line_is_found() -> None:
    assert {words[-1] for _, _, words in LINES} == {
        f"slurm/{name}.sh" for name in ("clean", "preprocess", "run", "evaluate", "stage1", "stage2")
    }
    assert {site for _, site, _ in LINES} == {"big", "four", "plain"}
    assert any("--array=0-31" in words for _, _, words in LINES)
    assert any("--dependency=afterok:JOB" in words for _, _, words in LINES)
    assert {"nodes of 4 GPUs", "no GPUs"} <= {where.partition(": ")[2] for where, _, _ in LINES}


def test_slurm_would_start_every_line(slurm: Cluster) -> None:
    before = slurm.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    refused = []
    for where, site, words in LINES:
        filled = [word.replace("JOB", before).replace("=M", "=8") for word in words]
        said = slurm.call("sbatch", "--test-only", f"--partition={site}", *filled, directory=ROOT, code=None)
        if "to start at" not in said:
            refused.append(f"{where}: {' '.join(filled)}: {said}")
    slurm.call("scancel", before)
    assert not refused, "\n".join(refused)


def test_a_line_that_no_node_can_run_is_found(slurm: Cluster) -> None:
    asked = ("--partition=plain", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=33", "slurm/stage1.sh")
    said = slurm.call("sbatch", "--test-only", *asked, directory=ROOT, code=1)
    assert "Requested node configuration is not available" in said
