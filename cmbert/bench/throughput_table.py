"""`cmbert bench inference --model A B ...`: tokens per second of any encoders, all timed in turn, as one table.

The columns are those of ModernBERT's table (arXiv 2412.13663): fixed and variable lengths at each context, in bf16.
Weights are drawn at random, since speed does not depend on them: of a hub's model only its config.json is fetched.
Tokens are drawn from each model's own vocabulary; how much text a token holds is another question, for `cmbert eval`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmbert.accel import prepare_kernels
from cmbert.bench.memory import check_weights
from cmbert.bench.rows import Row
from cmbert.bench.throughput import (
    DTYPE,
    Batch,
    Run,
    Workload,
    make_batch,
    make_runner,
    our_runner,
    read_shape,
    time_in_turn,
)
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.environment import is_installed, versions
from cmbert.errors import ConfigError
from cmbert.evaluate.table import markdown_table
from cmbert.export.hf import is_ours
from cmbert.model.heads import MaskedLanguageModel
from cmbert.transfer.encoder_trial import most_tokens
from cmbert.transfer.encoders import (
    measure,
    network_class,
    opening,
    read_encoder_config,
    require_encoder,
)

THOUSAND = 1000


@dataclass(frozen=True)
class Candidate:
    """A model to be timed."""

    name: str
    peer: str
    """"cmbert", or transformers and its attention."""
    parameters: int
    """Of the encoder, which is what runs."""
    vocab_size: int
    max_length: int | None
    """Most tokens that it reads; None = any."""
    runner: Callable[[Batch], Run]

    def can_read(self, load: Workload) -> bool:
        """Say whether the longest segment fits."""
        return self.max_length is None or max(load.lengths) <= self.max_length


def open_candidates(models: Sequence[Path], overrides: Sequence[str]) -> list[Candidate]:
    """Build every model on the GPU, or the CPU without one. `overrides` change the recipes.

    Raises ConfigError for a name given twice, a recipe that is wrong or transformers missing, CheckpointError for what
    is no encoder that transformers can build.
    """
    if twice := [model for index, model in enumerate(models) if model in models[:index]]:
        raise ConfigError(f"--model: {twice[0]} is named twice")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [_open(model, overrides, device) for model in models]


def _open(model: Path, overrides: Sequence[str], device: torch.device) -> Candidate:
    """A recipe or an exported folder runs in our code, anything else in transformers."""
    if model.suffix == ".toml":
        return our_candidate(str(model), *read_shape(model, overrides), device)
    if model.is_dir() and is_ours(model):
        return our_candidate(str(model), *read_shape(model, []), device)
    return their_candidate(str(model), device)


def our_candidate(name: str, model: ModelConfig, kernels: KernelConfig, device: torch.device) -> Candidate:
    """Return our model of this shape."""
    prepare_kernels(kernels, device, DTYPE)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in MaskedLanguageModel(model).model.parameters())
    check_weights(name, parameters, device)
    runner = our_runner("inference", model, kernels, device)
    return Candidate(name, "cmbert", parameters, model.vocab_size, model.max_length, runner)


def their_candidate(name: str, device: torch.device) -> Candidate:
    """Return transformers' encoder of a folder or hub name, with the fastest attention it has on this machine."""
    if not is_installed("transformers"):
        raise ConfigError(f"--model {name}: transformers is not installed: pip install transformers")
    from transformers.utils import is_flash_attn_2_available

    config = read_encoder_config(name)
    check_weights(name, measure(name, config).parameters, device)
    torch.manual_seed(0)
    with opening(name):
        built: Any = network_class(name, config).from_config(config, dtype=torch.float32)
        rows = built.get_input_embeddings().num_embeddings
        require_encoder(name, built.eval(), rows)
    if device.type == "cuda" and built._supports_flash_attn and is_flash_attn_2_available():
        built.set_attn_implementation("flash_attention_2")
    built = built.to(device, DTYPE)

    def encode(batch: Batch) -> object:
        return built(input_ids=batch.padded_ids, attention_mask=batch.attention_mask)

    def no_loss(batch: Batch) -> torch.Tensor:
        raise AssertionError("only inference is timed")

    return Candidate(
        name=name,
        peer=f"transformers {built.config._attn_implementation}",
        parameters=sum(weight.numel() for weight in built.parameters()),
        vocab_size=rows,
        max_length=most_tokens(name, built),
        runner=make_runner("inference", built, encode, no_loss),
    )


def time_candidates(candidates: Sequence[Candidate], loads: Sequence[Workload]) -> Iterator[Row]:
    """Time every candidate on each workload that it can read, in turn, and yield their rows. Tokens are real ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for load in loads:
        able = [candidate for candidate in candidates if candidate.can_read(load)]
        runs = {c.name: c.runner(make_batch(load.lengths, c.vocab_size, device)) for c in able}
        seconds, memory = time_in_turn(runs, device)
        tokens = sum(load.lengths)
        for candidate in able:
            row: Row = {"work": f"inference, {load.name}, bf16", "peer": candidate.peer, "model": candidate.name}
            row |= {"tokens_per_second": round(tokens / seconds[candidate.name]), "parameters": candidate.parameters}
            row |= {
                "run_memory_mb": round(memory[candidate.name] / 1e6),
                "tokens": tokens,
                "segments": len(load.lengths),
            }
            yield row | versions(device)


def throughput_table(candidates: Sequence[Candidate], loads: Sequence[Workload], rows: Sequence[Row]) -> str:
    """Return a Markdown table, thousands of tokens per second, and why a figure is missing."""
    found = {(row["model"], row["work"]): row["tokens_per_second"] for row in rows}
    lines = []
    for candidate in candidates:
        rates = [found.get((candidate.name, f"inference, {load.name}, bf16")) for load in loads]
        cells = ["–" if rate is None else f"{rate / THOUSAND:,.1f}" for rate in rates]
        lines.append([candidate.name, candidate.peer, f"{candidate.parameters / 1e6:,.1f}M", *cells])
    header = ["model, thousand tokens/s", "runs in", "parameters", *(load.name for load in loads)]
    notes = [
        f"–: {candidate.name} reads {candidate.max_length:,} tokens at most"
        for candidate in candidates
        if not all(candidate.can_read(load) for load in loads)
    ]
    return "\n".join([markdown_table(header, lines), *notes])
