#!/bin/bash
# One command of `cmbert` on one GPU. From the repository's root:
#   sbatch slurm/evaluate.sh eval runs/large/stage2 --data runs/large/heldout --by-position --output runs/large/eval.json
#SBATCH --job-name=cmbert-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f slurm/job.sh ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/job.sh
run_one -m cmbert "$@"
