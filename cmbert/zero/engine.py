"""The ONLY home of deepspeed: start it, build an engine, save, load, read a checkpoint back as plain weights."""

import argparse
import contextlib
import io
import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed

from cmbert.cluster.distributed import Launch
from cmbert.cluster.rendezvous import meet
from cmbert.errors import CheckpointError, ConfigError, TransientError, advice
from cmbert.files.operations import doing
from cmbert.zero.optim import AdamW, Fragment, Layout
from cmbert.zero.step_timer import StepTimer, time_collectives

UNIVERSAL_VERSION = 0.2  # of the form that DeepSpeed's converter writes


def _import_deepspeed() -> ModuleType:
    """Import DeepSpeed quietly: it logs at import, and asks for an accelerator by environment variable."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(f"deepspeed cannot be imported ({error}); install it: pip install deepspeed") from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls what torch 2.13 has renamed; the user can do nothing about it.
    warnings.filterwarnings(
        "ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*deprecated", category=FutureWarning
    )
    # To know which of its operations could be compiled here, DeepSpeed runs a compiler. We use none, and one it would
    # compile at start: a shared-memory all-reduce, 40 s the first time, and it fails without a compiler.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    _adapt(deepspeed)
    return deepspeed


def _adapt(deepspeed: ModuleType) -> None:
    """Replace three parts of DeepSpeed 0.19.

    It accumulates in fp32 at ZeRO 1 by another optimizer class, with a checkpoint form and a wait for the device of its
    own; the class of ZeRO 2 can do it, too (deepspeed/runtime/zero/stage_1_and_2.py, use_grad_accum_attribute).
    It marks norms that are not finite by a -1 copied from the host, for which the host waits.
    In its first step it asks whether the optimizer is Muon, and to import that is to compile it: the whole of inductor.
    """
    from deepspeed.runtime import compiler
    from deepspeed.runtime.engine import ZERO_OPTIMIZATION
    from deepspeed.runtime.zero import stage_1_and_2

    deepspeed.DeepSpeedEngine._do_optimizer_sanity_check = lambda self, optimizer: ZERO_OPTIMIZATION
    stage_1_and_2.mask_nan_or_inf_with_val_inplace = _mark_not_finite
    compiler.compile = lambda: compiler.dummy_decorator


def _mark_not_finite(norm: torch.Tensor, device: Any = None, val: float = -1.0) -> None:
    norm.masked_fill_(~norm.isfinite(), val)


def start_distributed(
    launch: Launch,
    device: torch.device,
    timeout: timedelta | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Join the process group (NCCL on GPUs, gloo on CPUs); `stop_distributed` leaves it. Return whether all joined.

    timeout: how long a collective may wait for the slowest rank before it fails (None: torch's default).
    is_asked_to_stop: while ranks are missing; False is returned then. Raises what `meet` does.
    """
    deepspeed = _import_deepspeed()
    store = meet(launch, is_asked_to_stop)
    if store is None:
        return False
    os.environ.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
        MASTER_ADDR=launch.address,
        MASTER_PORT=str(launch.port),
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)  # takes the group over
    return True


def stop_distributed() -> None:
    """Leave the process group; without this a rank may abort at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def time_steps(device: torch.device) -> StepTimer:
    """Return a timer of this rank's steps that DeepSpeed's collectives, too, add to. After `start_distributed`."""
    _import_deepspeed()
    from deepspeed.comm import comm

    timer = StepTimer(device)
    comm.cdb = time_collectives(comm.cdb, timer)
    return timer


def build_engine(model: torch.nn.Module, optimizer: AdamW, config: dict[str, Any]) -> Any:
    """Return the DeepSpeed engine of `model`; `config` comes from `resolve_deepspeed`."""
    engine, _, _, _ = _import_deepspeed().initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    optimizer.layout = find_layout(engine)
    return engine


def find_layout(engine: Any) -> Layout:
    """Return which fragments of which parameters this rank's flat fp32 tensors hold.

    ZeRO 1 and 2 lay the parameters of a group end to end, cut that into one partition a rank, and note what came of
    each parameter in `_hp_mapping`; ZeRO 3 cuts every parameter (`grad_position`). Only the last fragments are padded.
    """
    zero, parameters = engine.optimizer, list(engine.module.parameters())
    fragments: dict[torch.Tensor, list[Fragment]] = {}
    if engine.zero_optimization_stage() == 3:
        fragments |= {flat: [] for flat in zero.fp32_partitioned_groups_flat}
        for number, parameter in enumerate(parameters):
            group, start, length = zero.grad_position[zero.get_param_id(parameter)]
            offset = torch.distributed.get_rank() * parameter.partition_numel()
            fragments[zero.fp32_partitioned_groups_flat[group]].append(Fragment(number, start, length, offset))
    else:
        fragments |= {flat: [] for flat in zero.single_partition_of_fp32_groups}
        for number, parameter in enumerate(parameters):
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: other ranks have all of it
                flat, place = (
                    zero.single_partition_of_fp32_groups[mapping.param_group_index],
                    mapping.hp_fragment_address,
                )
                offset = mapping.lp_fragment_address.start
                fragments[flat].append(Fragment(number, place.start, place.numel, offset))
    return Layout.of(fragments, parameters, engine.device, across_ranks=torch.distributed.get_world_size() > 1)


def save_engine(engine: Any, directory: Path, tag: str, write: Callable[[Any, str], None]) -> None:
    """Hand the ZeRO state of this rank to `write(table, path)`, paths under `directory`/`tag`. All ranks call this."""
    engine.checkpoint_engine.save = lambda state_dict, path: write(state_dict, path)
    engine.checkpoint_engine.makedirs = lambda path, exist_ok: None  # they are there; it would fail on one rank alone
    engine._copy_recovery_script = lambda path: None  # `cmbert export` does what that script does
    client_state = {"universal_checkpoint_info": {"universal_checkpoint_version": UNIVERSAL_VERSION}}
    engine.save_checkpoint(str(directory), tag=tag, client_state=client_state, save_latest=False)


def load_engine(engine: Any, checkpoint: Path, *, universal: bool = False) -> None:
    """Restore weights and optimizer. All ranks call this.

    checkpoint: written at this world size, or, if `universal`, made by `convert_to_universal` from any. DeepSpeed
    unpickles it: nothing but a run's own files, proved by their hashes, may come here.
    """
    engine._config.load_universal_checkpoint = universal
    optimizer = engine.basic_optimizer
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    with doing("list", checkpoint):
        os.listdir(checkpoint)  # DeepSpeed takes what it cannot list for empty
    try:
        with doing("read", checkpoint), contextlib.redirect_stdout(io.StringIO()):
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what torch's zip reader makes of a read that fails; it does not say of which file
        raise TransientError(
            f"{checkpoint}: its files are whole, and reading them failed (read): {error}; {advice(passing=True)}"
        ) from error
    if path is None:
        raise CheckpointError(f"{checkpoint}: DeepSpeed found no checkpoint of this world size and ZeRO stage there")
    # DeepSpeed 0.19 loads the universal form at ZeRO 3 with one step counter for all sub-groups, and gives every group
    # the first one's weight decay.
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group |= own
    optimizer.place_counters()
    engine.optimizer.clip_grad = 0.0  # what a checkpoint says of it comes from before the optimizer clipped
    optimizer.layout = find_layout(engine)
    _link_states(engine)


def _link_states(engine: Any) -> None:
    """Let DeepSpeed's views of the optimizer's states be those of now: others would keep their memory."""
    for parameter in engine.module.parameters():
        mapping = getattr(parameter, "_hp_mapping", None)  # at ZeRO 3 there is none
        if mapping is not None:
            flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            mapping.set_optim_state_fragment(flat, engine.basic_optimizer.state[flat])


def convert_to_universal(checkpoint: Path, target: Path) -> None:
    """Write `checkpoint` to the directory `target` in DeepSpeed's form for any number of ranks, in this process."""
    _import_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def set_accumulation(engine: Any, num_micro_batches: int) -> None:
    """Tell the engine how many micro-batches this rank has in the coming step: a batch ramp changes that."""
    if num_micro_batches != engine.gradient_accumulation_steps():
        ranks = torch.distributed.get_world_size()
        engine.set_train_batch_size(num_micro_batches * engine.train_micro_batch_size_per_gpu() * ranks)


def global_gradient_norm(engine: Any) -> torch.Tensor:
    """Return the norm of the gradient over all parameters and ranks before clipping, () fp32; inf if not finite.

    Valid from the moment the optimizer is asked to step. DeepSpeed marks a norm that is not finite by -1, and has a
    number instead of a tensor where it has waited for the device anyway (offload).
    """
    norm = torch.as_tensor(engine.optimizer._global_grad_norm, dtype=torch.float32, device=engine.device)
    return norm.masked_fill(~(norm >= 0), math.inf)


def consolidate(directory: Path, tag: str) -> dict[str, torch.Tensor]:
    """Return the fp32 weights of a ZeRO checkpoint of any stage and world size, on the CPU, without a process group."""
    _import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # The converter prints its steps and a progress bar; it has no switch for that.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=tag)
