#!/bin/bash
# Stage 2. From the repository's root: sbatch slurm/stage2.sh [RECIPE] [options of `cmbert train`]
# The sizes below are recipes/large's on nodes of 8 GPUs; options of sbatch override them, one task per GPU.
#SBATCH --job-name=cmbert-stage2
#SBATCH --nodes=7
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f slurm/train.sh ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/train.sh
# The trainer refuses, with exit code 2, when the recipe's train.init_from has no checkpoint.
train_stage "${1:-recipes/large/stage2.toml}" "${@:2}"
