"""What a plan takes for granted about machines and text: every figure with its source. All can be set on the command
line; none is a measurement of this project unless it says so."""

from dataclasses import dataclass

from cmbert.machine.hardware import H100_FLOPS

NODE_GPUS = 8  # of an HGX H100 board
LLAMA_INTERRUPTIONS, LLAMA_DAYS, LLAMA_GPUS = 419, 54, 16_384  # unexpected ones, arXiv 2407.21783, section 3.3.4
NODE_MTBF_HOURS = LLAMA_DAYS * 24 * LLAMA_GPUS / NODE_GPUS / LLAMA_INTERRUPTIONS


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The machine, the failures and the text that a plan is made for."""

    gpu_memory_gb: float = 80.0
    """Of one GPU, 1e9 bytes (H100, its data sheet)."""
    usable_share: float = 0.9
    """Of it for tensors; the rest for CUDA, NCCL and fragments."""
    peak_flops: float = H100_FLOPS
    """Dense bf16 operations per second of one GPU (H100 SXM, its data sheet)."""
    mfu: float = 0.33
    """Share of the peak that training reaches (what ModernBERT-large's published hours on 8 H100 at 1,024 come to)."""
    bandwidth_gbits: float = 400.0
    """Per GPU and direction between nodes, Gbit/s: one ConnectX-7 a GPU, as in NVIDIA's DGX H100."""
    nvlink_gbytes: float = 450.0
    """Per GPU and direction inside a node, GB/s (NVLink 4, H100's data sheet: 900 in both)."""
    hop_microseconds: float = 10.0
    """For each message of a ring from one GPU or node to the next."""
    node_gpus: int = NODE_GPUS
    """GPUs of a node."""
    node_mtbf_hours: float = NODE_MTBF_HOURS
    """Hours between two failures of one node: 419 interruptions of 2,048 nodes in 54 days (arXiv 2407.21783)."""
    stall_seconds: float = 1.0
    """How long training stands still for a checkpoint (ours; `checkpoint_stall_seconds` of a run measures it)."""
    write_seconds: float = 10.0
    """How long its files then take, training going on (ours; `checkpoint_write_seconds` of a run)."""
    restart_minutes: float = 10.0
    """From a failure until training goes on: noticed, requeued, nodes checked, checkpoint loaded."""
    text_bytes_per_token: float = 4.5
    """UTF-8 bytes per token where no shard set says it (the paper's 5.66 TB for its 1.2T tokens, nearly)."""
    document_tokens: float = 500.0
    """Tokens of a document where no shard set says it."""
    preprocess_mb_per_second: float = 7.4
    """Of UTF-8 text on one core: measured, docs/performance.md."""
    clean_mb_per_second: float = 4.9
    """Of raw UTF-8 text on one core, all passes together: measured, docs/performance.md."""
    clean_kept_share: float = 0.9
    """Of raw text that stays (ours: 59.2 of 65.3 MB of laws and reviews did)."""
    clean_kept_documents: float = 0.7
    """Of its documents that stay (the same: 51,673 of 73,633)."""
