"""Commands start soon: what each one imports, and the seconds until it answers."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.launching import settings, start, train

BESIDE_TORCH = ("torch", "transformers", "deepspeed", "numba", "scipy", "matplotlib", "tensorboard", "jieba", "pyarrow")
COMPILING = ("torch._dynamo", "torch._inductor", "sympy", "distutils.ccompiler")  # seconds, if imported
TRIES = 5  # the best one counts: the machine's other work only adds
ANSWER_SECONDS, FIRST_STEP_SECONDS = 0.4, 6.0  # files cached; of one core, of two
SOUND_SECONDS = {"numpy, tokenizers": 0.15, "torch, deepspeed": 2.7}  # of bare imports, where these limits hold


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m words` as a user does, whose first call keeps the bytecode of the sources, and see it succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def imported(*words: str) -> set[str]:
    """Return the modules that a command imports until its end."""
    log = run(*words, PYTHONPROFILEIMPORTTIME="1").stderr
    found = set(re.findall(r"^import time:.*\| +(\S+)$", log, re.MULTILINE))
    assert "argparse" in found, "the log was read"
    return found


def test_help_imports_next_to_nothing() -> None:
    for words in (("cmbert", "--help"), ("cmbert", "train", "--help"), ("data_tools", "--help")):
        assert not imported(*words) & {*BESIDE_TORCH, "numpy", "tokenizers"}


def test_a_plan_imports_no_torch(recipe_file: Path) -> None:
    """Not for the rows of shards that are there, nor to look for the stage before."""
    found = imported("cmbert", "plan", str(recipe_file), "--set", "train.init_from=none")
    assert {"cmbert.data.packing", "cmbert.checkpoint.files"} <= found
    assert not found & set(BESIDE_TORCH)


def test_the_documents_of_a_step_import_no_torch(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file, "--max-steps", "2")
    words = ("cmbert", "ledger", str(tmp_path / "run"), "--step", "1")
    assert not imported(*words) & {*BESIDE_TORCH, "cmbert.data.kernels"}
    assert "cmbert.data.kernels" in imported(*words, "--show")


def test_a_report_imports_no_torch(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file, "--max-steps", "2")
    found = imported("cmbert", "report", str(tmp_path / "run"), "--output", str(tmp_path / "run.html"))
    assert "matplotlib" in found
    assert not found & {"torch", "tensorboard"}


def test_an_exported_folder_is_read_without_a_compiler() -> None:
    """To compare its weights with the configuration no torch.nn.init runs on the meta device, which imports dynamo."""
    code = """
import sys, torch
from cmbert.config.schema import ModelConfig
from cmbert.model.folder import model_from
from cmbert.model.heads import MaskedLanguageModel
config = ModelConfig(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=64)
weights = MaskedLanguageModel(config).state_dict()
built = model_from(weights, config, "here")
assert all(torch.equal(value, weights[name]) for name, value in built.state_dict().items())
sys.exit(bool({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_without_compilation_imports_no_compiler(recipe_file: Path) -> None:
    for _ in range(2):  # the second call resumes what the first has saved
        found = imported("cmbert", "train", str(recipe_file), "--max-steps", "2")
        assert {"deepspeed", "torch.optim", "cmbert.checkpoint.writer"} <= found
        assert not found & {*COMPILING, "transformers", "matplotlib"}


def test_only_rank_0_imports_tensorboard() -> None:
    code = "import sys, cmbert.train.loop; sys.exit('tensorboard' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_call_names_its_first_step_before_the_second(recipe_file: Path) -> None:
    seldom = settings("train.log_every_steps=1000", "train.ephemeral_every_steps=2")
    output, _ = start(recipe_file, *seldom, fault="kill:1:0").communicate(timeout=240)
    assert re.findall(r" step (\d+)/16  loss", output) == ["1"], output
    train(recipe_file, *seldom, "--max-steps", "2")
    output, _ = start(recipe_file, *seldom, fault="kill:3:0").communicate(timeout=240)
    assert "resuming at step 2" in output
    assert re.findall(r" step (\d+)/16  loss", output) == ["3"], output


def seconds(*words: str) -> float:
    """Return the processor's seconds that a command takes.

    On an idle machine they are what a user waits, since the files are cached; what else a busy one does is not in them.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def slowness(modules: str) -> float:
    """Return how many times longer bare imports take than on a sound machine, at least 1: it may be throttled now."""
    return max(1.0, seconds("timeit", "-n", "1", "-r", "1", f"import {modules}") / SOUND_SECONDS[modules])


@pytest.mark.alone
@pytest.mark.parametrize("words", [("cmbert", "--help"), ("cmbert", "plan", "RECIPE"), ("data_tools", "--help")])
def test_answers_come_at_once(words: tuple[str, ...], recipe_file: Path) -> None:
    words = tuple(str(recipe_file) if word == "RECIPE" else word for word in words)
    found = [seconds(*words) / slowness("numpy, tokenizers") for _ in range(TRIES)]  # by turns: it changes in seconds
    assert min(found) < ANSWER_SECONDS, words


@pytest.mark.alone
def test_the_first_step_comes_within_seconds(recipe_file: Path, tmp_path: Path) -> None:
    found = []
    for number in range(TRIES):
        began = time.perf_counter()
        run_directory = settings(f"run_directory={tmp_path}/{number}")
        process = start(recipe_file, *run_directory, "--max-steps", "1", popen=subprocess.Popen)
        assert process.stdout is not None
        lines = (line for line in process.stdout if "  loss " in line)
        assert " step 1/16 " in next(lines)
        found.append(time.perf_counter() - began)
        process.communicate(timeout=240)
        found[-1] /= slowness("torch, deepspeed")
    assert min(found) < FIRST_STEP_SECONDS
