"""The ONLY home of deepspeed: start it, build an engine, save, load, read a checkpoint back as plain weights."""

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed

from cmbert.errors import CheckpointError, ConfigError
from cmbert.train.distributed import Launch
from cmbert.train.optim import AdamW, Layout, Segment

SHARED_MEMORY_OPERATION = "deepspeed_shm_comm"


def _import_deepspeed() -> ModuleType:
    """Import DeepSpeed quietly: it logs at import, and asks for an accelerator by environment variable."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"deepspeed cannot be imported ({error}); install it: pip install -c constraints.txt deepspeed"
        ) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls what torch 2.13 has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*deprecated", category=FutureWarning)
    # DeepSpeed would compile a shared-memory all-reduce at start, 40 s the first time, and fail without a compiler.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATION] = False
    return deepspeed


def start_distributed(launch: Launch, device: torch.device) -> None:
    """Join the process group (NCCL on GPUs, gloo on CPUs); `stop_distributed` leaves it."""
    os.environ.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
        MASTER_ADDR=launch.address,
        MASTER_PORT=str(launch.port),
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    _import_deepspeed().init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def stop_distributed() -> None:
    """Leave the process group; without this a rank may abort at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_engine(model: torch.nn.Module, optimizer: AdamW, config: dict[str, Any]) -> Any:
    """Return the DeepSpeed engine of `model`; `config` comes from `resolve_deepspeed`."""
    engine, _, _, _ = _import_deepspeed().initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    optimizer.layout = find_layout(engine)
    return engine


def find_layout(engine: Any) -> Layout:
    """Return which pieces of which parameters this rank's flat fp32 tensors hold.

    ZeRO 1 and 2 lay the parameters of a group end to end, cut that into one partition a rank, and note what came of
    each parameter in `_hp_mapping`; ZeRO 3 cuts every parameter (`grad_position`). Only the last pieces are padded.
    """
    zero, parameters = engine.optimizer, list(engine.module.parameters())
    segments: dict[torch.Tensor, list[Segment]] = {}
    if engine.zero_optimization_stage() == 3:
        segments |= {flat: [] for flat in zero.fp32_partitioned_groups_flat}
        for number, parameter in enumerate(parameters):
            group, start, length = zero.grad_position[zero.get_param_id(parameter)]
            segments[zero.fp32_partitioned_groups_flat[group]].append(Segment(number, start, length))
    else:
        segments |= {flat: [] for flat in zero.single_partition_of_fp32_groups}
        for number, parameter in enumerate(parameters):
            piece = parameter._hp_mapping
            if piece is not None:  # None: other ranks have all of it
                flat, place = zero.single_partition_of_fp32_groups[piece.param_group_index], piece.hp_fragment_address
                segments[flat].append(Segment(number, place.start, place.numel))
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters]
    return Layout(
        segments,
        torch.tensor(sizes, dtype=torch.float64, device=engine.device),
        across_ranks=torch.distributed.get_world_size() > 1,
    )


def save_engine(engine: Any, directory: Path, tag: str) -> None:
    """Write the ZeRO files of every rank under `directory`/`tag`. All ranks call this."""
    engine.save_checkpoint(str(directory), tag=tag, save_latest=False)


def load_engine(engine: Any, directory: Path, tag: str) -> None:
    """Restore weights and optimizer from `directory`/`tag`, written at the same world size. All ranks call this."""
    path, _ = engine.load_checkpoint(str(directory), tag=tag)
    if path is None:
        raise CheckpointError(
            f"{directory / tag}: DeepSpeed found no checkpoint of this world size and ZeRO stage there"
        )


def consolidate(directory: Path, tag: str) -> dict[str, torch.Tensor]:
    """Return the fp32 weights of a ZeRO checkpoint of any stage and world size, on the CPU, without a process group."""
    _import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # The converter prints its steps and a progress bar; it has no switch for that.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=tag)
