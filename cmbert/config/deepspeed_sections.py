"""What may stand inside the sections of a DeepSpeed file: DeepSpeed 0.19 ends in its own traceback at anything else.

Some of it would pass and mean something else: "false" is true, and true is stage 1.
"""

import difflib
import reprlib
from collections.abc import Callable
from typing import Any

Fits = Callable[[Any], bool]
DTYPES = ("fp32", "bf16", "fp16")


def _flag(value: Any) -> bool:
    """true or false"""
    return type(value) is bool


def _count(value: Any) -> bool:
    """a whole number from 0 to 2^63 - 1"""  # 5e8 is one
    return type(value) in (int, float) and 0 <= value < 2**63 and value == int(value)


def _positive_count(value: Any) -> bool:
    """a whole number from 1 to 2^63 - 1"""
    return _count(value) and value > 0


def _positive(value: Any) -> bool:
    """a number above 0"""
    return type(value) in (int, float) and 0 < value < 1e308


def _share(value: Any) -> bool:
    """a number from 0 to 1"""
    return type(value) in (int, float) and 0 <= value <= 1


def _text(value: Any) -> bool:
    """a text"""
    return type(value) is str and value.isprintable() and value != ""


def _texts(value: Any) -> bool:
    """a list of texts"""
    return isinstance(value, list) and all(map(_text, value))


def _dtype(value: Any) -> bool:
    """one of fp32, bf16 and fp16, or null"""
    return value is None or (type(value) is str and value in DTYPES)


def _device(value: Any) -> bool:
    """one of none, cpu and nvme"""
    return type(value) is str and value in ("none", "cpu", "nvme")


def _text_or_null(value: Any) -> bool:
    """a text or null"""
    return value is None or _text(value)


def _depth(value: Any) -> bool:
    """a whole number, -1 for all"""
    return value == -1 or _count(value)


def _table(value: Any) -> bool:
    """an object"""
    return isinstance(value, dict)


def _keys(fits: Fits, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), fits)


_OFFLOAD = {"device": _device, "nvme_path": _text, "buffer_count": _count, "pin_memory": _flag}
_OFFLOAD_PARAM = {**_OFFLOAD, "buffer_size": _count, "max_in_cpu": _count}
_OFFLOAD_OPTIMIZER = {
    **_OFFLOAD,
    **_keys(_flag, "pipeline_read pipeline_write fast_init super_offload"),
    **_keys(_share, "ratio cpuadam_cores_perc"),
}
_ZERO = {
    "stage": _count,  # which: cmbert.config.deepspeed says it
    "offload_param": _OFFLOAD_PARAM,
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
    **_keys(_table, "zenflow leaf_module"),
    **_keys(_positive_count, "reduce_bucket_size"),
    **_keys(
        _count,
        "allgather_bucket_size sub_group_size prefetch_bucket_size stage3_prefetch_bucket_size "
        "param_persistence_threshold stage3_param_persistence_threshold model_persistence_threshold "
        "stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters max_reuse_distance "
        "stage3_max_reuse_distance module_granularity_threshold stage3_module_granularity_threshold "
        "zero_hpz_partition_size",
    ),
    **_keys(
        _flag,
        "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
        "compute_grad_norm load_from_fp32_weights elastic_checkpoint cpu_offload_param cpu_offload_use_pin_memory "
        "cpu_offload gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save "
        "use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params allgather_sequential "
        "stage3_allgather_sequential stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 "
        "round_robin_gradients parameter_alignment zero_quantized_weights zero_quantized_nontrainable_weights "
        "zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply "
        "log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory",
    ),
}
SECTIONS: dict[str, Any] = {
    "zero_optimization": _ZERO,
    "bf16": _keys(
        _flag,
        "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    ),
    "data_types": {"grad_accum_dtype": _text_or_null},
    "communication_data_type": _dtype,
    **_keys(_flag, "prescale_gradients wall_clock_breakdown dump_state memory_breakdown disable_allgather"),
    "gradient_predivide_factor": _positive,
    "comms_logger": {**_keys(_flag, "enabled prof_all verbose debug"), "prof_ops": _texts},
    "flops_profiler": {
        **_keys(_flag, "enabled detailed"),
        **_keys(_positive, "recompute_fwd_factor"),
        **_keys(_count, "profile_step top_modules"),
        **_keys(_depth, "module_depth"),
        **_keys(_text_or_null, "output_file"),
    },
    "aio": {
        **_keys(_positive_count, "block_size queue_depth intra_op_parallelism"),
        **_keys(_flag, "single_submit overlap_events use_gds"),
    },
    "timers": {"throughput": _keys(_flag, "enabled synchronized")},
}


def section_fault(value: Any, known: Any, key: str = "") -> str | None:
    """Return what of a DeepSpeed table is unknown or of another type, as "key: fault; remedy", or None.

    known: SECTIONS, or a part of it. The top level's unknown keys are the caller's.
    """
    if not isinstance(known, dict):
        return None if known(value) else f"{key}: {reprlib.repr(value)} must be {known.__doc__}"
    if not isinstance(value, dict):
        return f"{key}: {reprlib.repr(value)} must be an object"
    for name, inner in value.items():
        below = f"{key}.{name}" if key else name
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            return f"{below!r}: unknown key; {f'did you mean {near[0]!r}?' if near else 'remove it'}"
        if fault := section_fault(inner, known[name], below):
            return fault
    return None
