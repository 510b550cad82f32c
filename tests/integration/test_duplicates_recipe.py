"""recipes/large/duplicates.py at a small size: its groups are those that were drawn, in tasks of any size."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "recipes" / "large" / "duplicates.py"


def test_the_search_for_duplicates_is_rehearsed() -> None:
    command = [sys.executable, str(PROGRAM), "--documents", "100000"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert said.startswith("100,000 documents, 180.6 bytes of signatures each")
    assert re.search(r"compare: 15 tasks, 1\d\d,\d\d\d pairs", said)
    assert "cluster: 80,001 groups, as drawn" in said
