#!/bin/bash
# Stage 2. From the repository's root, once stage 1 is finished: sbatch slurm/stage2.sh [RECIPE] [options of `cmbert train`]
#   sbatch --dependency=afterok:JOB slurm/stage2.sh      JOB: stage 1's number; if that fails for good, Slurm cancels this one
# The sizes below are recipes/large's on nodes of 8 GPUs; options of sbatch override them, one task per GPU.
#SBATCH --job-name=cmbert-stage2
#SBATCH --nodes=7
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f slurm/train.sh ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/train.sh
# The preflight refuses, with exit code 2, a train.init_from that has no checkpoint, or is a run that is not finished.
[[ ${1:-} != -* ]] || set -- "" "$@" # options without a recipe
train_stage "${1:-recipes/large/stage2.toml}" "${@:2}"
