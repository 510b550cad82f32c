"""Will it fit: the bytes that `cmbert bench` holds at its peak, ours and the peers', before it builds anything.

On a CPU more is kept than fused kernels keep: the probabilities of attention, and fp32 values of norms. Compared with
the resident size of processes on a CPU: tests/cmbert/bench/test_memory.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cmbert.bench.throughput import MASK_RATE, Against, Work, peer_attentions, workloads
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.memory import free_memory_bytes, no_room, require_memory
from cmbert.model.cost import (
    BF16_BYTES,
    CPU_NORM_BYTES,
    FP32_BYTES,
    OPTIMIZER_BYTES,
    cpu_bytes_beside,
    estimate_activations,
)

HOST_BYTES = 500_000_000  # of a process on a CPU: libraries loaded late, and their scratch (measured)
LEAST_BATCH_TOKENS = 512  # that a refusal names
COMPILER_BYTES = 300_000_000  # of torch.compile in it (measured)
PEER_LOGIT_BYTES = 14  # transformers' loss at every position: bf16, fp32, its logarithms and their gradient
PEER_MASK_BYTES = 4  # per pair of positions: transformers' two masks of a batch


@dataclass(frozen=True)
class Shape:
    """A model that is timed."""

    model: ModelConfig
    kernels: KernelConfig
    padded: bool = False
    """Whether it is transformers', which pads the batch and has logits everywhere."""


def bench_bytes(work: Work, shapes: Sequence[Shape], loads: Sequence[Sequence[int]], device: torch.device) -> int:
    """Return what a benchmark holds at its peak; `loads`: the lengths of the segments of each batch, tokens.

    All models stay, each with its optimizer's fp32 copy and moments; one at a time runs, or is being built.
    """
    state = BF16_BYTES + (OPTIMIZER_BYTES if work == "train" else 0)
    held = [state * count_parameters(shape.model).total for shape in shapes]
    run = max(run_bytes(work, shape, lengths, device) for shape in shapes for lengths in loads)
    compiler = COMPILER_BYTES * any(shape.kernels.compile for shape in shapes)
    return sum(held) + run + (HOST_BYTES + compiler if device.type == "cpu" else 0)


def run_bytes(work: Work, shape: Shape, lengths: Sequence[int], device: torch.device) -> int:
    """Return what a run of one model takes beside what stands: gradients, activations, logits, or fp32 weights."""
    model, parameters = shape.model, count_parameters(shape.model)
    tokens = max(lengths) * len(lengths) if shape.padded else sum(lengths)
    masks = PEER_MASK_BYTES * len(lengths) * max(lengths) ** 2 if shape.padded else 0
    if work == "inference":
        activations = (2 * model.hidden_size + 4 * model.intermediate_size) * BF16_BYTES * tokens
        norm = 0 if shape.kernels.compile or device.type == "cuda" else CPU_NORM_BYTES * model.hidden_size * tokens
        building = BF16_BYTES * parameters.total if device.type == "cpu" else 0  # fp32, until it becomes bf16
        return max(activations + norm + masks, building)
    num_masked = MASK_RATE * sum(lengths)
    found = estimate_activations(model, shape.kernels, tokens, num_masked, BF16_BYTES)
    logits = PEER_LOGIT_BYTES * tokens * model.vocab_size if shape.padded else found.logits
    kept = found.kept + logits + masks + BF16_BYTES * parameters.embedding
    if device.type == "cpu" and not shape.padded:
        kept += cpu_bytes_beside(model, shape.kernels, lengths)
    return int(max(kept, FP32_BYTES * parameters.total))


def shapes_of(model: ModelConfig, kernels: KernelConfig, against: Against | None, device: torch.device) -> list[Shape]:
    """Return what `open_contestants` builds."""
    ours = Shape(model, kernels)
    if against == "hf":
        return [ours, *(Shape(model, KernelConfig(), padded=True) for _ in peer_attentions(device))]
    return [ours, *([Shape(replace(model, global_every=1), kernels)] if against else [])]


@dataclass(frozen=True)
class Request:
    """What a benchmark is asked for: options of the command line."""

    against: Against | None
    contexts: Sequence[int]
    segments: Sequence[int]
    batch_tokens: int


def check_bench(work: Work, model: ModelConfig, kernels: KernelConfig, asked: Request) -> None:
    """Raise ConfigError when a benchmark needs more memory than there is; name the first options that do not.

    Tried in turn: smaller batches, the shortest context alone, no peer; segments that were given stay.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_memory_bytes(device)

    def needed(request: Request) -> int:
        loads = workloads(request.contexts, request.segments, request.batch_tokens, model.max_length)
        shapes = shapes_of(model, kernels, request.against, device)
        return bench_bytes(work, shapes, [load.lengths for load in loads], device)

    if needed(asked) <= free:
        return
    fitting = (_options(request, asked) for request in _smaller(asked) if needed(request) <= free)
    raise no_room(f"bench {work}", needed(asked), free, device, f"fits: {next(fitting, 'a smaller --model')}")


def _smaller(asked: Request) -> Iterator[Request]:
    shortest = [min(asked.contexts)] if asked.contexts else []
    for against in dict.fromkeys((asked.against, None)):
        for contexts in (asked.contexts, shortest):
            batch_tokens = asked.batch_tokens
            while batch_tokens >= LEAST_BATCH_TOKENS:
                yield replace(asked, against=against, contexts=contexts, batch_tokens=batch_tokens)
                batch_tokens //= 2


def _options(request: Request, asked: Request) -> str:
    """Name what differs from what was asked for."""
    words = [f"without --against {asked.against}"] if request.against != asked.against else []
    if request.contexts != asked.contexts:
        words.append(f"--lengths {request.contexts[0]}")
    if request.batch_tokens != asked.batch_tokens:
        words.append(f"--batch-tokens {request.batch_tokens}")
    return " ".join(words)


def check_weights(name: str, parameters: int, device: torch.device) -> None:
    """Raise ConfigError when the weights of a model, fp32 while it is built on a CPU, need more memory than is free."""
    needed = parameters * (BF16_BYTES if device.type == "cuda" else FP32_BYTES)
    require_memory(f"--model {name}", needed, device, "leave it out, or name fewer models")
