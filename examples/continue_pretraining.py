"""Train a model of ours further on your own text: python examples/continue_pretraining.py RUN TEXT_FOLDER OUTPUT

RUN is a finished run directory of `cmbert train`; TEXT_FOLDER has .jsonl, .parquet or .txt files. It is one pass over
the text with the run's last mask rate, at a tenth of its learning rate, in steps of the run's rows or as many fewer as
make 200 steps of the text. What follows goes to `cmbert train`, for example --set train.rows_per_step=64; for several
GPUs --processes N. The weights of other models, and exports, cannot be continued yet.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

NO_RAMP = "ramp_start_rows = 0, ramp_increment_rows = 0, ramp_tokens = 0"
LEAST_STEPS = 200  # fewer do not carry a schedule
RECIPE = """extends = {parent}
run_directory = {run}
data.sources = [{{ path = {shards} }}]
data.changes = []
mask = {{ start_rate = {mask_rate}, peak_rate = {mask_rate}, end_rate = {mask_rate}, warmup_tokens = 0 }}
schedule = {{ kind = "linear", lr_max = {lr_max}, lr_min = {lr_min}, warmup_tokens = 0, decay_tokens = 0 }}
train = {{ total_tokens = {tokens}, rows_per_step = {rows}, init_from = {init_from}, init_tiling = false, {no_ramp} }}
"""


def call(*words: object) -> None:
    """Run one command of ours; end with its exit code if it fails, since it has said why."""
    code = subprocess.run([sys.executable, "-m", *map(str, words)], check=False).returncode
    if code:
        sys.exit(code)


def main(run: str = "", text: str = "", output: str = "", *more: str) -> int:
    """Clean, tokenize, write the recipe, train; return the exit code."""
    parent, out = Path(run) / "resolved.toml", Path(output)
    if not output or not parent.is_file():
        print(f"{run or 'no run given'}: no run directory of cmbert train", file=sys.stderr)
        return 2
    before = tomllib.loads(parent.read_text(encoding="utf-8"))
    call("data_tools", "clean", "--input", text, "--output", out / "text")
    tokenizer = before["data"]["tokenizer"]  # the weights know no other
    call("data_tools", "preprocess", "--input", out / "text", "--tokenizer", tokenizer, "--output", out / "shards")
    manifest = json.loads((out / "shards" / "manifest.json").read_text(encoding="utf-8"))
    paths = {"parent": parent.absolute(), "run": out / "run", "shards": out / "shards", "init_from": run}
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    numbers = {
        "mask_rate": before["mask"]["end_rate"],
        "lr_max": before["schedule"]["lr_max"] / 10,
        "lr_min": before["schedule"]["lr_max"] / 100,
        "tokens": tokens,
        "no_ramp": NO_RAMP,
        "rows": min(before["train"]["rows_per_step"], 1 + tokens // before["data"]["context_tokens"] // LEAST_STEPS),
    }
    quoted = {name: json.dumps(str(path), ensure_ascii=False) for name, path in paths.items()}
    (out / "recipe.toml").write_text(RECIPE.format(**quoted, **numbers), encoding="utf-8")
    call("cmbert", "train", out / "recipe.toml", *more)
    print(f"next: cmbert export {out / 'run'} --output {out / 'export'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
