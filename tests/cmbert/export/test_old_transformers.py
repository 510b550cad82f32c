"""Exported folders in older versions of transformers: the same logits, no question, no norm taken for another.

Each version is installed into pytest's cache, without torch, which is the running environment's, and comes before that
environment's own packages. A version that was installed once is not asked of a registry again.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.export.gate import ROUNDINGS, Reference, make_reference, measure
from cmbert.export.hf import _write
from cmbert.files.folders import building
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from tests.cmbert.export.faults import in_config

pytestmark = pytest.mark.slow
VERSIONS = ("4.48.0", "4.57.6", "5.0.0", "5.3.0")
"""The first with ModernBERT, the last of 4, the first of 5, and one that leaves a decoder of remote code untied."""
UNREACHABLE = ("No matching distribution found", "Could not find a version")
READER = Path(__file__).with_name("old_reader.py")
SHAPE = {
    "num_layers": 6,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 384,
    "init_std": 0.2,
}
BASE, THEIR_BASE = 80_000.0, 160_000.0  # of global layers: ours, and what transformers takes where it finds none
TEXTS = ["今天天气很好，我们去公园散步。" * 30, "你好", "", "语言模型学习词语之间的关系。" * 9]


def model_of(norm: str) -> MaskedLanguageModel:
    """A model of which every part matters."""
    model = MaskedLanguageModel(ModelConfig(norm=norm, rope_base_global=BASE, max_length=1024, **SHAPE))
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def with_their_base(values: dict[str, Any]) -> None:
    values["rope_parameters"]["full_attention"]["rope_theta"] = values["global_rope_theta"] = THEIR_BASE


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> tuple[Path, dict[str, Reference]]:
    """A folder of three exports, one with another base, and what their logits are to be compared with."""
    place, references = tmp_path_factory.mktemp("exports"), {}
    for norm in ("layernorm", "rmsnorm"):
        model, folder = model_of(norm), place / norm
        folder.mkdir()
        _write(folder, model, tokenizer_directory)
        references[norm] = make_reference(folder, model, TEXTS)
    shutil.copytree(place / "layernorm", place / "wrong")
    in_config(with_their_base)(place / "wrong")
    batches = [(batch.input_ids, batch.attention_mask) for batch in references["layernorm"].batches]
    torch.save(batches, place / "batches.pt")
    return place, references | {"wrong": references["layernorm"]}


def installed(version: str, cache: Path) -> Path:
    """Return a folder of packages with this transformers in it; skip the test if no registry has it."""
    folder = cache / f"transformers-{version}"
    if not folder.is_dir():
        with building(folder) as aside:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--target",
                str(aside),
                f"transformers=={version}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode and any(words in done.stderr for words in UNREACHABLE):
                pytest.skip(f"pip reaches no registry with transformers {version}")
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def seen(
    request: pytest.FixtureRequest, exports: tuple[Path, dict[str, Reference]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one version makes of the exports; it has no input to ask from, and prints nothing."""
    packages = installed(request.param, request.config.cache.mkdir("old_transformers"))
    place = shutil.copytree(exports[0], tmp_path_factory.mktemp(request.param) / "exports")
    environment = os.environ | {
        "PYTHONPATH": str(packages), "HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",  # else DeepSpeed prints that it looked for another
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(READER), str(place)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=600, check=False, env=environment, cwd=place,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    found: dict[str, Any] = torch.load(place / "seen.pt")
    assert found["version"] == request.param
    assert found["torch"] == torch.__version__
    return found


def roundings(reference: Reference, logits: list[torch.Tensor]) -> float:
    """Return the error of logits in those of our own fp32 program."""
    found = iter(logits)
    return measure(reference, lambda ids, mask: next(found)) / reference.rounding


def test_logits_are_ours(seen: dict[str, Any], exports: tuple[Path, dict[str, Reference]]) -> None:
    """Short beside long, padded at either side, one longer than the local window; eager and sdpa."""
    for (name, implementation), logits in seen["logits"].items():
        found = roundings(exports[1][name], logits)
        print(f"{seen['version']} {name} {implementation}: {found:,.2f} roundings")
        assert (found > 10 * ROUNDINGS) if name == "wrong" else (found < ROUNDINGS), (name, implementation)


def test_the_texts_are_of_every_kind(exports: tuple[Path, dict[str, Reference]]) -> None:
    batches = exports[1]["rmsnorm"].batches
    assert max(batch.attention_mask.shape[1] for batch in batches) == 512
    padded = [batch.attention_mask for batch in batches if not batch.attention_mask.all()]
    assert {bool(mask[:, 0].all()) for mask in padded} == {True, False}


def test_the_tokenizer_asks_nothing(seen: dict[str, Any]) -> None:
    """The reader opened it without trust_remote_code, with no input to ask from and nothing printed."""
    assert all(ids == seen["ids"][0] for ids in seen["ids"])
    assert (seen["ids"][0][0], seen["ids"][0][-1]) == (2, 3)


def test_a_model_takes_all_that_its_tokenizer_returns(seen: dict[str, Any]) -> None:
    for shape in seen["fed"].values():
        assert (shape[0], shape[2]) == (2, SHAPE["vocab_size"])


def test_without_its_code_an_rmsnorm_model_does_not_load(seen: dict[str, Any]) -> None:
    assert len(seen["untrusted"]) == 5
    for said in seen["untrusted"].values():
        assert re.match("RuntimeError: .*mismatch", said), said


def test_stock_modernbert_stays_stock(seen: dict[str, Any], exports: tuple[Path, dict[str, Reference]]) -> None:
    """Before and after an RMSNorm folder was opened in the same process."""
    assert (seen["stock before"], seen["stock after"]) == (True, True)
    assert roundings(exports[1]["layernorm"], seen["logits after"]) < ROUNDINGS


def test_what_it_saves_loads_again(seen: dict[str, Any]) -> None:
    families = {"layernorm": "ModernBert", "rmsnorm": "Cmbert"}
    for norm, family in families.items():
        assert seen["saved"][norm] == {
            "same weights": True, "same norm": True, "fresh norm": True, "class": f"{family}ForSequenceClassification",
        }  # fmt: skip
