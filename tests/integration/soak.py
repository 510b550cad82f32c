"""Kill a training run at random moments until it is done; every life must continue it bit for bit.

    python -m tests.integration.soak --kills 50 --ranks 2 --zero 1

Not part of the suite: fifty kills take about a quarter of an hour. docs/reliability.md has the last result.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.integration.launching import children, deepspeed_file, settings, start, trace, train

KINDS = ("kill -9 of one rank", "kill -9 of all ranks", "SIGTERM to one rank")
LONG = ("train.total_tokens=102400", "train.checkpoint_every_steps=7", "train.ephemeral_every_steps=3")  # 200 steps


def make_recipe(folder: Path) -> Path:
    """Make tokenizer, shards and recipe with the fixtures of the suite, in a process of its own."""
    test = folder / "test_make.py"
    test.write_text(
        "import shutil\n"
        "def test_make(recipe_file, tokenizer_directory, shards):\n"
        f"    folder = {str(folder)!r}\n"
        "    text = recipe_file.read_text(encoding='utf-8')\n"
        "    for name, path in (('tokenizer', tokenizer_directory), ('shards', shards)):\n"
        "        shutil.copytree(path, f'{folder}/{name}')\n"
        "        text = text.replace(str(path), f'{folder}/{name}')\n"
        "    text = text.replace(str(recipe_file.parent), folder)\n"
        "    open(f'{folder}/recipe.toml', 'w', encoding='utf-8').write(text)\n",
        encoding="utf-8",
    )
    fixtures = ["-p", "tests.conftest", "--rootdir", str(folder), "-c", os.devnull]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *fixtures, str(test)], check=True, stdout=subprocess.DEVNULL)
    return folder / "recipe.toml"


def one_life(recipe: Path, setting: tuple[str, ...], ranks: int, kind: str, choice: random.Random) -> str:
    """Start the run and strike at a random moment; return when that was, or "finished" if it was too late."""
    run = recipe.parent / "killed"
    process = start(recipe, *setting, ranks=ranks)
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.is_file() else 0
    is_early = choice.random() < 0.25
    moment = time.monotonic() + choice.uniform(0, 12)
    while is_early and time.monotonic() < moment and process.poll() is None:
        time.sleep(0.01)
    while not is_early and process.poll() is None and (not metrics.is_file() or metrics.stat().st_size == before):
        time.sleep(0.005)
    if not is_early:
        time.sleep(choice.uniform(0, 2.5))
    workers = children(process.pid) if ranks > 1 else [process.pid]
    writing = list((run / "checkpoints").glob(".step_*.partial"))
    if process.poll() is not None or not workers:
        process.kill()
        process.communicate()
        return "finished" if process.returncode == 0 else "before the ranks began"
    for victim in workers if kind == KINDS[1] else [choice.choice(workers)]:
        os.kill(victim, signal.SIGTERM if kind == KINDS[2] else signal.SIGKILL)
    process.communicate(timeout=180)
    return "while starting" if is_early else "while a checkpoint was written" if writing else "in a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choice, counts, started = random.Random(options.seed), Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(folder)
        common = settings(*LONG, deepspeed_file(folder, options.zero))
        train(recipe, *common, *settings(f"run_directory={folder}/unbroken"), ranks=options.ranks)
        expected = trace(folder / "unbroken")
        setting = (*common, *settings(f"run_directory={folder}/killed"))
        runs = 0
        while counts.total() < options.kills:
            kind = choice.choice(KINDS)
            when = one_life(recipe, setting, options.ranks, kind, choice)
            if when != "finished":
                counts[kind, when] += 1
                print(f"{counts.total():3d} of {options.kills}: {kind} {when}", flush=True)
                if counts.total() < options.kills:
                    continue
            train(recipe, *setting, ranks=options.ranks)
            assert trace(folder / "killed") == expected, "the killed run is not the unbroken one"
            subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
            runs += 1
    for (kind, when), count in sorted(counts.items()):
        print(f"{count:4d}  {kind}, {when}")
    minutes = (time.monotonic() - started) / 60
    print(
        f"{counts.total()} kills, {runs} runs of {len(expected)} steps, ZeRO {options.zero} on {options.ranks} ranks: "
        f"every trace equal bit for bit ({minutes:.0f} min)"
    )


if __name__ == "__main__":
    main()
