"""recipes/serving at a tiny size: every runtime that is here, what int8 costs; and docs/serving.md's Python."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.model.heads import MaskedLanguageModel

for package in ("onnx", "onnxruntime", "sentence_transformers"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "serving"
SHAPE = {"num_layers": 3, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "max_length": 1024}


@pytest.fixture(scope="module")
def measure() -> Iterator[Any]:
    """recipes/serving/measure.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        spec = importlib.util.spec_from_file_location("serving_measure", RECIPE / "measure.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@torch.no_grad()
def vectors(model: MaskedLanguageModel) -> torch.Tensor:
    """Return mean vectors of texts of 30 and 240 tokens."""
    ids = torch.randint(5, 384, (270,), generator=torch.Generator().manual_seed(0))
    hidden_TD = model.model(ids, torch.tensor([0, 30, 270], dtype=torch.int32))
    return torch.nn.functional.normalize(torch.stack([hidden_TD[:30].mean(0), hidden_TD[30:].mean(0)]), dim=-1)


def test_likeness_shows_another_norm_base_and_window(measure: Any) -> None:
    config = ModelConfig(vocab_size=384, norm="rmsnorm", **SHAPE)
    model = measure.random_model(config)
    changes: list[dict[str, Any]] = [{"norm": "layernorm"}, {"rope_base_global": 160_000.0}, {"local_window": 64}]
    for change in changes:
        other = MaskedLanguageModel(dataclasses.replace(config, **change)).eval()
        other.load_state_dict(model.state_dict())
        assert (vectors(other) * vectors(model)).sum(-1).min() < 0.999, change


def test_the_table_says_what_was_and_what_was_not_run(measure: Any) -> None:
    ours = {"norm": "rmsnorm", "runtime": "cmbert", "vectors": [[1.0, 0.0]], "512": 1234.5, "versions": ["torch 2"]}
    theirs = ours | {"runtime": "theirs", "vectors": [[0.6, 0.8]]}
    missing = {"norm": "rmsnorm", "runtime": "absent", "missing": "No module named 'absent'"}
    lines = measure.table([ours, theirs, missing], ["512"]).splitlines()
    assert lines[2] == "| rmsnorm | cmbert (torch 2) | 1.000000 | 1,234 |"
    assert lines[3] == "| rmsnorm | theirs (torch 2) | 0.600000 | 1,234 |"
    assert lines[4] == "| rmsnorm | absent | not run: No module named 'absent' |  |"


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_runtime_gives_our_vectors(
    tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    output = tmp_path / "runs"
    sets = [word for key, value in SHAPE.items() for word in ("--set", f"model.{key}={value}")]
    shape = ["--shape", ROOT / "recipes/base/stage1.toml", *sets, "--lengths", "64,128", "--rounds", 1]
    run(RECIPE / "measure.py", "--tokenizer", tokenizer_directory, "--output", output, *shape)
    rows = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert len(rows) == 10
    assert not [row for row in rows if "missing" in row]
    lines = (output / "results.md").read_text(encoding="utf-8").splitlines()[2:]
    cosines = [float(line.split("|")[3]) for line in lines]
    assert all(cosine > (0.99 if "int8" in line else 0.99999) for line, cosine in zip(lines, cosines, strict=True))
    pairs = tmp_path / "pairs.json"
    texts = ["今天天气很好", "外面阳光明媚", "这家酒店的服务态度非常好", "改革继续推进"]
    said = [
        {"sentence1": one, "sentence2": other, "label": str(int(one[0] < other[0]))} for one in texts for other in texts
    ]
    pairs.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said), encoding="utf-8")
    printed = run(RECIPE / "int8.py", output / "rmsnorm_onnx", "--pairs", pairs).splitlines()
    assert re.fullmatch(r"model.onnx: [\d.]+ MB, Spearman -?[\d.]+ on 16 pairs", printed[0])
    assert printed[1].startswith("model_int8.onnx: ")
    check_page(output, tmp_path, monkeypatch)


def check_page(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python of docs/serving.md that needs nothing which is not installed here."""
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "backend=" not in block]
    assert len(blocks) == 2
    place = tmp_path / "reader"
    (place / "runs").mkdir(parents=True)
    (place / "runs" / "embedding").mkdir()
    (place / "runs" / "embedding" / "model").symlink_to(output / "rmsnorm")
    (place / "runs" / "embedding_onnx").symlink_to(output / "rmsnorm_onnx")
    monkeypatch.chdir(place)
    assert run("-c", blocks[0]).startswith("cosine ")
    (output / "rmsnorm_onnx" / "model_int8.onnx").unlink()
    run("-c", blocks[1])
    assert (output / "rmsnorm_onnx" / "model_int8.onnx").is_file()
