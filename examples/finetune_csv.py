"""Fine-tune a model on a CSV file of texts and labels, and print how often it is right:

    python examples/finetune_csv.py MODEL DATA.csv --text COLUMN --label COLUMN --output DIR

MODEL is a run, an exported folder, or any encoder that transformers loads. A tenth of the rows, drawn by lot, is held
back to judge by. What follows goes to `cmbert finetune`, for example --epochs 5, --grid or --seeds 5.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

NAME = "csv"  # of the task, in folders and tables
LEAST_ROWS = 10  # one is held back, nine are learnt


def read_rows(path: str, text: str, label: str) -> list[dict[str, str]]:
    """Return text and label of every row. Raises ValueError for a row or a column that is not there."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for column in (text, label):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"no column {column!r}; the first line has: {', '.join(reader.fieldnames or ())}")
        rows = []
        for row in reader:
            rows.append({"text": (row[text] or "").strip(), "label": (row[label] or "").strip()})
            if not all(rows[-1].values()):
                raise ValueError(f"line {reader.line_num}: {text!r} or {label!r} is empty")
    if len(rows) < LEAST_ROWS or len({row["label"] for row in rows}) < 2:
        raise ValueError(f"{len(rows)} rows; {LEAST_ROWS} with two different labels are the least")
    return rows


def main() -> int:
    """Write the task, fine-tune, print the accuracy; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    for name in ("text", "label", "output"):
        parser.add_argument(f"--{name}", required=True)
    options, more = parser.parse_known_args()
    try:
        rows = read_rows(options.data, options.text, options.label)
    except (OSError, ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        print(f"{options.data}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    random.Random(0).shuffle(rows)
    for split, part in (("dev", rows[: len(rows) // 10]), ("train", rows[len(rows) // 10 :])):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{split}.json").write_text(lines, encoding="utf-8")
    labels = json.dumps(sorted({row["label"] for row in rows}), ensure_ascii=False)
    (folder / "task.toml").write_text(f'name = "{NAME}"\ntext = ["text"]\nlabels = {labels}\n', encoding="utf-8")
    command = [sys.executable, "-m", "cmbert", "finetune", "--seeds", "1", *more, "--model", options.model]
    command += ["--task", str(folder / "task.toml"), "--data", str(folder)]
    command += ["--output", str(folder / "results"), "--name", "model"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        result = json.loads((folder / "results" / NAME / "model" / "result.json").read_text(encoding="utf-8"))
        dev = result["splits"]["dev"]
        commonest = f"the commonest label alone: {dev['majority_share']:.1f} %"
        print(f"right on {dev['accuracy']['mean']:.1f} % of {dev['examples']} rows held back ({commonest})")
    return code


if __name__ == "__main__":
    sys.exit(main())
