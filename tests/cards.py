"""What the card of an exported folder tells a reader to run."""

import re
import subprocess
import sys
from pathlib import Path

RUN_EACH = """
for snippet in sys.argv[2:]:
    exec(snippet, {"folder": sys.argv[1]})
    print(end="\\f")
"""


def run_snippets(card: str, folder: Path, environment: dict[str, str], *absent: str) -> list[str]:
    """Run the card's Python as a reader would, without this package and `absent`; return what each printed."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ("cmbert", *absent))
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = f"import sys\n{blocked}{RUN_EACH}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder), *snippets],
        capture_output=True, text=True, cwd=folder.parent, env=environment, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\f")[:-1]
