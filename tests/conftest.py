"""Fixtures of several rooms: a tiny tokenizer, tiny shard sets, tiny recipes, unbroken runs, all made here."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import cmbert.files.lease
from cmbert.checkpoint.state import TrainState
from cmbert.config.load import write_resolved
from cmbert.config.schema import Recipe
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.writer import ShardWriter
from cmbert.files.lease import Lease, claim, myself
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from cmbert.wide_products import widen_products
from tests.scheduling import (  # noqa: F401  pytest finds them here
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_terminal_summary,
)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; its children would be as deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["OMP_NUM_THREADS"] = "1"  # of tests and what they start, for they run side by side
widen_products()  # as training does
SENTENCES = (
    "今天天气很好，我们一起去公园散步。",
    "他在北京大学学习计算机科学，每天读很多书！",
    "这家酒店的服务态度非常好，房间也很干净？",
    "人民日报报道，经济保持了平稳增长；改革继续推进。",
    "I bought 3 books on Monday，价格是１２元。\n",
)
VOCAB_SIZE = 384


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 384 ids, as transformers loads it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=0,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [a + b for a in SENTENCES for b in SENTENCES]
    backend.train_from_iterator(words, trainer)
    assert backend.get_vocab_size() == VOCAB_SIZE
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.save(str(directory / "tokenizer.json"))
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))
    config = {f"{name}_token": token for name, token in names.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_directory)


@pytest.fixture
def occupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Let a process of another machine work in a directory while the test runs."""
    monkeypatch.setattr(cmbert.files.lease, "RENEW_SECONDS", 0.05)
    leases: list[Lease] = []

    def occupy(directory: Path) -> None:
        owner = dataclasses.replace(myself(), host="n7", machine="another", command="the same command")
        leases.append(Lease(directory, claim(directory, owner)))
        leases[-1].hold()

    yield occupy
    for lease in leases:
        lease.forget()


def leave_run(recipe: Recipe, step: int) -> Path:
    """Make a run directory whose newest checkpoint is of `step`."""
    run = Path(recipe.run_directory)
    checkpoint = run / "checkpoints" / f"step_{step:09d}"
    checkpoint.mkdir(parents=True)
    write_resolved(recipe, run / "resolved.toml")
    (checkpoint / "MANIFEST.json").write_text("{}", encoding="utf-8")
    fingerprint = load_tokenizer(recipe.data.tokenizer).fingerprint
    state = TrainState(
        step=step, rows=8 * step, tokens=512 * step, world_size=1, zero_stage=1,
        tokenizer_fingerprint=fingerprint, shard_fingerprints=[],
    )  # fmt: skip
    (checkpoint / "state.json").write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
    (run / "checkpoints" / "latest").write_text(f"{checkpoint.name}\n", encoding="utf-8")
    return run


def make_shards(
    directory: Path, tokenizer: Tokenizer, *, lengths: list[int], num_shards: int = 1, seed: int = 0
) -> Path:
    """Write a shard set of documents of the given token counts: repeated sentences, units of one or two tokens."""
    random = np.random.default_rng(seed)
    sentences = [np.array(tokenizer.encode(sentence)) for sentence in SENTENCES]
    directory.mkdir(parents=True)
    entries = []
    for index, part in enumerate(np.array_split(np.array(lengths), num_shards)):
        writer = ShardWriter(directory, f"{index:05d}", token_dtype(VOCAB_SIZE))
        for length in part.tolist():
            order = random.integers(len(sentences), size=length // min(map(len, sentences)) + 1)
            tokens = np.concatenate([sentences[i] for i in order])[:length]
            starts = random.random(length) < 0.7
            starts[0] = True
            writer.append(tokens, np.array([length]), starts)
        entries.append(writer.close())
    tokenizer_entry = {"fingerprint": tokenizer.fingerprint, "vocab_size": VOCAB_SIZE}
    write_manifest(directory, {"tokenizer": tokenizer_entry, "shards": entries})
    return directory


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Three shards of 600 documents of 1 to 300 tokens, about 40,000 tokens."""
    lengths = np.random.default_rng(1).integers(1, 300, 600) // np.random.default_rng(2).integers(1, 6, 600) + 1
    return make_shards(tmp_path_factory.mktemp("data") / "shards", tokenizer, lengths=lengths.tolist(), num_shards=3)


@pytest.fixture(scope="session")
def other_shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A second source: 120 documents of 9 to 150 tokens."""
    return make_shards(tmp_path_factory.mktemp("data") / "other", tokenizer, lengths=[20, 150, 9, 60] * 30, seed=5)


@pytest.fixture
def recipe_file(tmp_path: Path, tokenizer_directory: Path, shards: Path) -> Path:
    """A recipe small enough to train a few steps in a second; fp32, ZeRO 1."""
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
run_directory = "{tmp_path}/run"
[model]
num_layers = 3
hidden_size = 32
num_heads = 2
intermediate_size = 48
vocab_size = {VOCAB_SIZE}
local_window = 16
[data]
tokenizer = "{tokenizer_directory}"
context_tokens = 64
shuffle_block_rows = 32
[[data.sources]]
path = "{shards}"
[schedule]
lr_max = 1e-3
lr_min = 1e-4
warmup_tokens = 1024
[mask]
warmup_tokens = 1024
[train]
total_tokens = 8192
rows_per_step = 8
micro_batch_rows = 2
checkpoint_every_steps = 4
deepspeed = "{tmp_path}/ds.json"
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return reference(recipe, *settings, ranks=1): the run directory of an unbroken training, made once for all.

    Only to be read. Paths of the test that asks may stand in recipe and settings: what they name is the same for all.
    """
    from tests.integration.launching import settings, train  # they load torch, which most tests need not

    made: dict[tuple, Path] = {}

    def unbroken(recipe: Path, *setting: str, ranks: int = 1) -> Path:
        own = str(recipe.parent)
        key = (recipe.read_text(encoding="utf-8").replace(own, ""), tuple(s.replace(own, "") for s in setting), ranks)
        if key not in made:
            run = tmp_path_factory.mktemp("reference") / "run"
            train(recipe, *setting, *settings(f"run_directory={run}"), ranks=ranks)
            made[key] = run
        return made[key]

    return unbroken
