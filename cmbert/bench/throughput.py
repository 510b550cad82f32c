"""`cmbert bench inference|train`: the encoder or a training step, beside a peer of the same shape in the same run.

The peer is transformers' ModernBERT, or our own model with attention that is global in every layer, which shows what
alternating it is worth. Needs torch alone; the peer of transformers needs transformers.

Shapes: N segments, L tokens of the longest, T tokens of all.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cmbert.accel import prepare_kernels
from cmbert.bench.rows import Row
from cmbert.config.load import load_recipe
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.environment import hardware, is_installed, versions
from cmbert.errors import ConfigError
from cmbert.machine.hardware import peak_flops
from cmbert.memory import PeakMemory
from cmbert.model.cost import count_batch_flops
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.model.mixed_precision import MixedPrecision

logger = logging.getLogger(__name__)

MASK_RATE = 0.3
ROUNDS = 5  # timed in turn after one that warms up
LEAST_SECONDS = 0.3  # a round repeats its work until it takes as long
SHORTEST_TOKENS = 16  # of the variable lengths
DTYPE = torch.bfloat16
LEARNING_RATE = 1e-5  # of the timed steps; nothing depends on it
PEAK_MATRIX = 4096  # rows and columns of the matmul that measures a CPU

ALL_GLOBAL = "cmbert all-global"

Work = Literal["inference", "train"]
Against = Literal["hf", "all-global"]
Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """Segments to read in one go."""

    name: str
    lengths: tuple[int, ...]


def read_shape(path: Path, overrides: Sequence[str]) -> tuple[ModelConfig, KernelConfig]:
    """Return the model and kernels of a recipe, or of an exported folder, whose kernels are the defaults.

    Raises ConfigError or CheckpointError when `path` is neither, or a folder is to be overridden.
    """
    if path.is_dir():
        from cmbert.model.folder import read_config

        if overrides:
            raise ConfigError(f"--set: {path} is an exported folder, which has no keys to override; name a recipe")
        return read_config(path), KernelConfig()
    recipe = load_recipe(path, list(overrides))
    return recipe.model, recipe.kernels


def workloads(contexts: Sequence[int], segments: Sequence[int], batch_tokens: int, max_length: int) -> list[Workload]:
    """Return fixed and variable lengths per context, and `segments` as given; about `batch_tokens` real tokens each.

    Variable lengths are normal around half the context, as in ModernBERT's own table (arXiv 2412.13663); the spread of
    a sixth of the context is ours. Raises ConfigError for lengths that are not positive or exceed `max_length`.
    """
    wrong = [length for length in (*contexts, *segments) if not 0 < length <= max_length]
    if wrong:
        raise ConfigError(
            f"--lengths, --segments: {wrong[0]} must lie between 1 and the model's max_length {max_length}"
        )
    if batch_tokens < 1 or not (contexts or segments):
        raise ConfigError("--batch-tokens must be positive, and --lengths or --segments name a length")
    found = [Workload(f"given {len(segments)} segments", tuple(segments))] if segments else []
    for context in contexts:
        generator = torch.Generator().manual_seed(context)
        count = max(1, 2 * batch_tokens // context)
        drawn = torch.normal(context / 2, context / 6, (count,), generator=generator)
        drawn = drawn.round().long().clamp(min(SHORTEST_TOKENS, context), context)
        found.append(Workload(f"fixed {context}", (context,) * max(1, batch_tokens // context)))
        found.append(Workload(f"variable to {context}", tuple(drawn.tolist())))
    return found


@dataclass(frozen=True)
class Batch:
    """The same tokens packed for us and padded for others, on the device."""

    input_ids: torch.Tensor  # (T,)
    cu_seqlens: torch.Tensor  # (N + 1,) int32
    masked_positions: torch.Tensor  # (M,)
    targets: torch.Tensor  # (M,)
    positions: torch.Tensor  # (T,), counted from the start of each segment
    longest: int  # L
    padded_ids: torch.Tensor  # (N, L)
    attention_mask: torch.Tensor  # (N, L)
    labels: torch.Tensor  # (N, L), -100 where nothing is predicted


def make_batch(lengths: Sequence[int], vocab_size: int, device: torch.device) -> Batch:
    """Draw tokens for segments of `lengths` and mask MASK_RATE of them."""
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    num_tokens = int(cu_seqlens[-1])
    ids = torch.randint(vocab_size, (num_tokens,), generator=generator)
    masked = torch.randperm(num_tokens, generator=generator)[: max(1, round(MASK_RATE * num_tokens))].sort().values
    labels = torch.full((num_tokens,), -100)
    labels[masked] = ids[masked]
    place = torch.arange(max(lengths))
    real = place < torch.tensor(lengths)[:, None]
    padded, padded_labels = torch.zeros(real.shape, dtype=torch.int64), torch.full(real.shape, -100)
    padded[real], padded_labels[real] = ids, labels
    return Batch(
        input_ids=ids.to(device),
        cu_seqlens=cu_seqlens.int().to(device),
        masked_positions=masked.to(device),
        targets=ids[masked].to(device),
        positions=place.expand(real.shape)[real].to(device),
        longest=max(lengths),
        padded_ids=padded.to(device),
        attention_mask=real.long().to(device),
        labels=padded_labels.to(device),
    )


def our_runner(work: Work, model: ModelConfig, kernels: KernelConfig, device: torch.device) -> Callable[[Batch], Run]:
    """Return batch -> one run of our model on it."""
    built = MaskedLanguageModel(model, kernels)
    initialise(built, 0)
    built = built.to(device, DTYPE)

    def loss(batch: Batch) -> torch.Tensor:
        loss_sum, _, _ = built(
            batch.input_ids, batch.cu_seqlens, batch.masked_positions, batch.targets, batch.positions, batch.longest
        )
        return loss_sum / len(batch.targets)

    def encode(batch: Batch) -> torch.Tensor:
        return built.model(batch.input_ids, batch.cu_seqlens, batch.positions, batch.longest)

    return make_runner(work, built, encode, loss)


def their_runner(work: Work, model: ModelConfig, attention: str, device: torch.device) -> Callable[[Batch], Run]:
    """Return batch -> one run of transformers' ModernBERT, as shipped, on the padded batch."""
    from transformers import ModernBertForMaskedLM

    from cmbert.export.hf import modernbert_config

    config = modernbert_config(model)
    config._attn_implementation = attention
    torch.manual_seed(0)
    built: Any = ModernBertForMaskedLM(config)
    built = built.to(device, DTYPE)

    def inputs(batch: Batch) -> dict[str, torch.Tensor]:
        return {"input_ids": batch.padded_ids, "attention_mask": batch.attention_mask}

    return make_runner(
        work,
        built,
        lambda batch: built.model(**inputs(batch)),
        lambda batch: built(**inputs(batch), labels=batch.labels).loss,
    )


def make_runner(
    work: Work, built: torch.nn.Module, encode: Callable[[Batch], object], loss: Callable[[Batch], torch.Tensor]
) -> Callable[[Batch], Run]:
    """Return batch -> one run of `work`: `encode` alone, or a training step of `loss`."""
    if work == "inference":
        built.eval()
        return lambda batch: torch.inference_mode()(lambda: encode(batch))
    optimizer = MixedPrecision(built, LEARNING_RATE)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()

    return lambda batch: lambda: step(batch)


@dataclass(frozen=True)
class Contestant:
    """A model to be timed on the same tokens as the others."""

    model: ModelConfig
    compiled: bool
    runner: Callable[[Batch], Run]


def open_contestants(
    work: Work, model: ModelConfig, kernels: KernelConfig, against: Against | None, device: torch.device
) -> dict[str, Contestant]:
    """Return our model, as "cmbert", and its peers by their names. Raises ConfigError if the peer is the same model."""
    prepare_kernels(kernels, device, DTYPE)
    found = {"cmbert": Contestant(model, kernels.compile, our_runner(work, model, kernels, device))}
    if against == "hf":
        for attention in peer_attentions(device):
            runner = their_runner(work, model, attention, device)
            found[f"transformers {attention}"] = Contestant(model, False, runner)
    if against == "all-global":
        if model.global_every == 1:
            raise ConfigError("--against all-global: model.global_every is 1 already; take one that alternates")
        peer = replace(model, global_every=1)
        found[ALL_GLOBAL] = Contestant(peer, kernels.compile, our_runner(work, peer, kernels, device))
    return found


def bench_throughput(
    work: Work, model: ModelConfig, kernels: KernelConfig, loads: Sequence[Workload], against: Against | None
) -> Iterator[Row]:
    """Time `work` on each workload, ours and the peers' in turn, and yield their rows.

    Tokens are real tokens. MFU is the operations the model needs (`count_batch_flops`) over the peak: NVIDIA's figure
    on a GPU it is known for, else a measured bf16 matmul. Memory is what a run takes beyond weights and optimizer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contestants = open_contestants(work, model, kernels, against, device)
    peak, source = find_peak(device)
    logger.info("%s, torch %s: bf16 peak %.3g TFLOP/s (%s)", hardware(device), torch.__version__, peak / 1e12, source)
    shape = f"{model.num_layers} layers x {model.hidden_size}"
    for load in loads:
        batch = make_batch(load.lengths, model.vocab_size, device)
        runs = {name: contestant.runner(batch) for name, contestant in contestants.items()}
        seconds, memory = time_in_turn(runs, device)
        tokens = sum(load.lengths)
        for name, contestant in reversed(contestants.items()):
            row: Row = {"work": f"{work} {shape}, {load.name}, bf16", "peer": name}
            row["tokens_per_second"] = round(tokens / seconds[name])
            if name == "cmbert" and len(contestants) > 1:
                row["ratio"] = round(min(seconds[other] for other in contestants if other != name) / seconds[name], 2)
            flops = count_batch_flops(contestant.model, load.lengths, len(batch.targets), training=work == "train")
            row |= {"mfu": float(f"{flops / seconds[name] / peak:.3g}"), "run_memory_mb": round(memory[name] / 1e6)}
            row |= {"tokens": tokens, "segments": len(load.lengths), "compiled": contestant.compiled}
            yield row | {"peak_tflops": round(peak / 1e12, 3), "peak": source, **versions(device)}


def time_in_turn(runs: dict[str, Run], device: torch.device) -> tuple[dict[str, float], dict[str, int]]:
    """Return seconds (median) and memory (bytes) of each run; every round does them all, so noise meets them alike."""
    memory, repeats = {}, {}
    for peer, run in runs.items():
        run()  # compiles, and fills the optimizer's moments
        with PeakMemory(device) as peak:
            once = timed(run, 1, device)
        memory[peer], repeats[peer] = peak.bytes, max(1, round(LEAST_SECONDS / once))
    seconds: dict[str, list[float]] = {peer: [] for peer in runs}
    for _ in range(ROUNDS):
        for peer, run in runs.items():
            seconds[peer].append(timed(run, repeats[peer], device))
    return {peer: statistics.median(found) for peer, found in seconds.items()}, memory


def timed(run: Run, repeats: int, device: torch.device) -> float:
    """Return seconds of one run."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronise(device)
    return (time.perf_counter() - started) / repeats


def synchronise(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_peak(device: torch.device) -> tuple[float, str]:
    """Return bf16 operations per second that MFU is a share of, and where the figure comes from."""
    nominal = peak_flops(hardware(device)) if device.type == "cuda" else None
    if nominal:
        return nominal, "nominal"
    left, right = (torch.randn(PEAK_MATRIX, PEAK_MATRIX, device=device).to(DTYPE) for _ in range(2))
    timed(lambda: left @ right, 1, device)
    seconds = statistics.median(timed(lambda: left @ right, 1, device) for _ in range(ROUNDS))
    return 2 * PEAK_MATRIX**3 / seconds, f"measured, matmul of {PEAK_MATRIX}"


def peer_attentions(device: torch.device) -> list[str]:
    """Return the attention implementations of transformers that this machine can run in bf16."""
    if not is_installed("transformers"):
        raise ConfigError("--against hf: transformers is not installed: pip install transformers")
    from transformers.utils import is_flash_attn_2_available

    return ["sdpa", *(["flash_attention_2"] if device.type == "cuda" and is_flash_attn_2_available() else [])]
