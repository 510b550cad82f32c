#!/bin/bash
# Build the optional GPU kernels, which are not to be had as wheels for every torch: run it once on a machine with the
# CUDA toolkit (a build takes up to an hour), from the repository's root. Everything works without them.
#   slurm/install_kernels.sh flash-attn       FlashAttention 2    (kernels.attention = "flash_attn")
#   slurm/install_kernels.sh flash-attn-3     FlashAttention 3, Hopper only, called by torch (kernels.attention = "flash_attn_3")
#   slurm/install_kernels.sh apex             NVIDIA apex         (kernels.norm = "apex")
# Several names may be given. MAX_JOBS bounds the compilers at work (each takes up to 10 GB; default 4).
set -euo pipefail

FLASH_ATTN=2.8.3           # release of both generations
APEX=25.09                 # tag
python=${CMBERT_PYTHON:-.venv/bin/python}
export MAX_JOBS=${MAX_JOBS:-4}

fail() {
    echo "install_kernels: $1" >&2
    exit 2
}

check_toolkit() {
    local torch_cuda nvcc_cuda
    command -v "$python" >/dev/null || fail "$python: not found; run 'make .venv/ready', or set CMBERT_PYTHON"
    torch_cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")') || fail "$python: cannot import torch"
    [[ -n $torch_cuda ]] || fail "this torch has no CUDA; install the CUDA build of the version in constraints.txt"
    command -v nvcc >/dev/null || fail "nvcc: not found; load the CUDA $torch_cuda toolkit (module load cuda)"
    nvcc_cuda=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [[ ${nvcc_cuda%%.*} == "${torch_cuda%%.*}" ]] ||
        fail "nvcc is of CUDA $nvcc_cuda, torch of $torch_cuda; load a toolkit of the same major version"
}

install() {
    case $1 in
        flash-attn)
            "$python" -m pip install --no-build-isolation --no-deps "flash-attn==$FLASH_ATTN" einops
            "$python" -c 'from flash_attn import flash_attn_varlen_func'
            ;;
        flash-attn-3)
            "$python" -m pip install --no-build-isolation --no-deps einops \
                "git+https://github.com/Dao-AILab/flash-attention@v$FLASH_ATTN#subdirectory=hopper"
            "$python" -c 'from torch.nn.attention import activate_flash_attention_impl as run; run("FA3")'
            ;;
        apex)
            APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "$python" -m pip install --no-build-isolation --no-deps \
                "git+https://github.com/NVIDIA/apex@$APEX"
            "$python" -c 'from apex.normalization.fused_layer_norm import fused_rms_norm_affine'
            ;;
    esac
    echo "install_kernels: $1 works"
}

[[ $# -gt 0 ]] || fail "name what to build: flash-attn, flash-attn-3, apex"
for name in "$@"; do
    [[ $name == flash-attn || $name == flash-attn-3 || $name == apex ]] ||
        fail "$name: unknown; choose flash-attn, flash-attn-3 or apex"
done
check_toolkit
"$python" -m pip install ninja packaging setuptools wheel
for name in "$@"; do
    install "$name"
done
