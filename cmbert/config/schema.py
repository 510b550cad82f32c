"""Every knob of a recipe, as frozen dataclasses. Defaults that the paper does not state are marked "ours".

P = stated by the paper (arXiv 2510.12285), R = read off its released checkpoint, F = ModernBERT's published default.
"""

from dataclasses import dataclass, field
from typing import Literal

RENAMED = {  # dotted key of a recipe -> its name today
    "data.window_rows": "shuffle_block_rows",
    "data.group_windows": "shuffle_blocks",
    "mask.mask_share": "mask_prob",
    "mask.random_share": "random_prob",
    "schedule.num_swings": "num_cycles",
    "train.rolling_every_steps": "ephemeral_every_steps",
    "kernels.checkpointed_share": "activation_checkpoint_fraction",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder. Parameter names and layout follow ModernBERT, so weights move between the two without a map."""

    num_layers: int
    """Transformer layers (P: 28)."""
    hidden_size: int
    """Width of the residual stream (P: 1,024)."""
    num_heads: int
    """Attention heads; hidden_size / num_heads must be even (P: 16)."""
    intermediate_size: int
    """Width of the GeGLU product; the input projection is twice as wide (derived from the paper: 2,624)."""
    vocab_size: int
    """Rows of the embedding: the tokenizer's ids, rounded up to a multiple of 64 (ours: 32,768; P: 32k)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Bias-free normalisation (P: RMSNorm; layernorm exports to stock ModernBERT)."""
    norm_eps: float = 1e-5
    """Added to the mean square inside the norm (F)."""
    global_every: int = 3
    """Layers 0, n, 2n, ... attend globally, the others locally (R: 3)."""
    local_window: int = 128
    """Local attention: half of it to each side, plus the token itself (R: 128 = 64 each side); tokens."""
    rope_base_global: float = 80_000.0
    """RoPE base of global layers (P at 8,192; at stage 1 ours)."""
    rope_base_local: float = 10_000.0
    """RoPE base of local layers (P)."""
    max_length: int = 8192
    """Longest segment the model is meant to read; tokens (P: 8,192)."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal initialisation, cut at 2 sigma (F)."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One shard set of the blend."""

    path: str
    """Shard-set directory (made by `data_tools preprocess`)."""
    weight: float = 0.0
    """Share of the rows relative to the other sources; 0 = in proportion to the source's rows."""
    max_epochs: float = 1_000.0
    """Refuse a plan that repeats this source more often; epochs."""


@dataclass(frozen=True, kw_only=True)
class BlendChange:
    """New weights of all sources from a token count on, without a new preprocessing: a curriculum."""

    at_tokens: int
    """Where they begin; row positions of this stage, rounded up to a whole step."""
    weights: tuple[float, ...]
    """One weight per source, in the order of data.sources."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rows come from."""

    tokenizer: str
    """Directory with tokenizer.json; its fingerprint must equal the shards'."""
    sources: tuple[SourceConfig, ...]
    """The blend, as [[data.sources]] tables."""
    changes: tuple[BlendChange, ...] = ()
    """Later weights, as [[data.changes]] tables in order of at_tokens."""
    context_tokens: int
    """Length of a row (P: 1,024 in stage 1, 8,192 in stage 2); tokens."""
    shuffle_block_rows: int = 512
    """Documents are packed within shuffle blocks of about this many rows (ours)."""
    shuffle_blocks: int = 16
    """Rows are shuffled across this many shuffle blocks at a time (ours)."""
    num_workers: int = 0
    """Loader processes per rank; 0 = in the training process."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masked-language-model targets. The rate is piecewise linear in tokens: start -> peak (warm-up), peak -> end."""

    start_rate: float = 0.15
    """Rate at token 0 (three readers of the paper agree on 15 % -> 30 % -> 15 %)."""
    peak_rate: float = 0.30
    """Rate at warmup_tokens (P: 30 %)."""
    end_rate: float = 0.15
    """Rate at the end of the stage (P: 15 %)."""
    warmup_tokens: int = 0
    """Where the peak lies; 0 = start at the peak (a plain 30 % -> 15 %). Ours: the learning rate's warm-up; tokens."""
    unit: Literal["word", "token"] = "word"
    """Mask whole words (P) or single tokens."""
    mask_prob: float = 0.8
    """Share of the chosen units replaced by [MASK] (F); decided once per unit."""
    random_prob: float = 0.1
    """Share of the chosen units replaced by random ordinary tokens (F); the rest stay as they are."""

    @property
    def highest_rate(self) -> float:
        """The highest rate that the stage reaches."""
        return max(self.start_rate, self.peak_rate, self.end_rate)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, StableAdamW, or Muon for the matrices and AdamW for the rest; no weight decay on norms and biases."""

    kind: Literal["stable_adamw", "adamw", "muon"] = "stable_adamw"
    """stable_adamw slows a tensor whose update would be large (F: arXiv 2304.13013); muon: docs/recipes.md (ours)."""
    momentum: float = 0.95
    """Decay of Muon's momentum, Nesterov's form (arXiv 2502.16982); the other kinds have none."""
    beta1: float = 0.9
    """Decay of the first moment (F)."""
    beta2: float = 0.95
    """Decay of the second moment (ours; ModernBERT .98)."""
    eps: float = 1e-6
    """Added to the root of the second moment (F)."""
    weight_decay: float = 0.01
    """Decoupled weight decay (ours)."""
    decay_embeddings: bool = True
    """Whether the token embedding, which is the decoder too, decays (F)."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; 0 = no clipping (ours)."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate after a linear warm-up, a function of tokens; the paper's is the damped cosine (Eq. 1)."""

    kind: Literal["damped_cosine", "cosine", "linear", "constant", "warmup_stable_decay"] = "damped_cosine"
    """Shape after the warm-up: Eq. 1, half a cosine or a line to lr_min, lr_max for good, or that and then 1 - sqrt."""
    lr_max: float
    """Rate at the end of the warm-up (ours; the paper does not say)."""
    lr_min: float
    """Rate at the end of the stage (ours)."""
    warmup_tokens: int = 0
    """Length of the linear warm-up; tokens (ours)."""
    decay_tokens: int = 0
    """Length of the decay at the end, of warmup_stable_decay alone (arXiv 2405.18392); tokens."""
    num_cycles: int = 1
    """N of Eq. 1: the cosine runs 2N-1 half periods; 1 never rises (ours)."""
    gamma: float = 0.0
    """Damping of Eq. 1: the peak line ends at gamma * lr_max (ours)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch geometry, length and bookkeeping of one stage."""

    total_tokens: int
    """Row positions to train on in this stage (P: 1.1T and 0.1T); the last step may pass it by part of a batch."""
    rows_per_step: int
    """Rows in one optimizer step over all ranks (F: 4,928 at 1,024; 616 at 8,192)."""
    micro_batch_rows: int
    """Most rows in one forward of one rank: it takes the most that divide. Changes speed and memory, not the result."""
    ramp_start_rows: int = 0
    """Rows of the first steps of a batch ramp, which grow to rows_per_step; 0 = no ramp (F: optional)."""
    ramp_increment_rows: int = 0
    """Rows by which the ramp grows at a time."""
    ramp_tokens: int = 0
    """Length of the ramp; every size gets an equal share, rounded up to whole steps; tokens (F: 10 B)."""
    seed: int = 0
    """Seed of initialisation, row order and masks."""
    deepspeed: str = "zero1"
    """DeepSpeed file: owns ZeRO stage and precision; a name of ds_configs/, or a path that ends in .json."""
    init_from: str = ""
    """Run, checkpoint or model folder whose weights start this stage (stage 2: stage 1's run); empty = fresh."""
    init_tiling: bool = False
    """Let init_from be a smaller model, whose weights are repeated to this one's shape (docs/recipes.md)."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints; one is always written at the end (ours)."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept (ours)."""
    keep_every_tokens: int = 0
    """Also keep, for good, the first checkpoint at or after each multiple of this; 0 = none; tokens."""
    ephemeral_every_steps: int = 0
    """Steps between ephemeral checkpoints, each removed by the next of any kind; 0 = none (ours)."""
    max_failed_saves: int = 3
    """Checkpoints in a row that may fail (a full disk) before the run ends (ours)."""
    log_every_steps: int = 10
    """Steps between log lines; metrics.jsonl has every step."""
    wandb_project: str = ""
    """Weights & Biases project that gets the metrics, too; empty = none. Needs the extra `wandb`."""


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """How the model is computed on this machine: speed and memory, the same results within rounding."""

    attention: str = "auto"
    """Attention backend: auto, cpu, flash_attn_3, flash_attn or torch_varlen (docs/kernels.md)."""
    norm: Literal["torch", "apex"] = "torch"
    """Who computes RMSNorm: torch, or NVIDIA apex where it is installed (not with compile, which fuses torch's)."""
    compile: bool = False
    """Fuse norms, rotations, GeGLU and loss by torch.compile. Needs ZeRO 1 or 2 and a C++ compiler (on GPU: Triton)."""
    deterministic: bool = False
    """The same bits in every run of the same steps on GPUs, too, at a cost in time (docs/reliability.md)."""
    activation_checkpoint_fraction: float = 0.0
    """Share of the layers, from the first, whose activations are computed again in the backward pass; 0 to 1."""

    def num_checkpointed(self, num_layers: int) -> int:
        """Return how many of `num_layers` layers that are."""
        return round(self.activation_checkpoint_fraction * num_layers)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out loss in mid-training, as `cmbert eval` computes it, in the training's precision."""

    shards: str = ""
    """Held-out shard set; empty = do not evaluate."""
    other_shards: tuple[str, ...] = ()
    """More held-out sets, scored with it: what a model that is trained on must not forget."""
    every_steps: int = 500
    """Steps between evaluations; one follows the last step, too (ours)."""
    max_rows: int = 256
    """Only the first rows of the set, packed at data.context_tokens (ours)."""


LEAST_HISTORY = 16  # steps before a spike can be judged (ours)


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What may not move the weights, and when to give up."""

    max_skipped_steps: int = 5
    """Steps in a row, not finite or spikes, that are skipped before the run ends (ours)."""
    spike_action: Literal["none", "skip", "rewind"] = "none"
    """On a spike: nothing, do not apply the step, or go back to the last checkpoint and leave the batches out."""
    spike_score: float = 20.0
    """Loss or gradient norm this many robust standard deviations above the window's median is a spike (ours)."""
    spike_window_steps: int = 128
    """Steps that a spike is judged by (ours)."""
    rewind_steps: int = 32
    """Batches left out by a rewind: the spike's and those before it, back to the checkpoint at most (ours)."""
    max_rewinds: int = 3
    """Rewinds of one call before the run ends (ours)."""
    hang_seconds: float = 1800.0
    """End the run, with a stack of every rank, when a rank makes no progress for so long; 0 = wait for ever (ours)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One stage of pretraining: everything `cmbert train` needs. Paths are relative to the working directory."""

    run_directory: str
    """Where the run lives (resolved.toml, metrics.jsonl, checkpoints/ ...)."""
    model: ModelConfig
    data: DataConfig
    schedule: ScheduleConfig
    train: TrainConfig
    mask: MaskConfig = field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
