#!/bin/bash
# One command of ours as a job, without GPUs. From the repository's root:
#   sbatch slurm/run.sh data_tools verify runs/large/shards/a
#   sbatch slurm/run.sh cmbert export runs/large/stage2 --output runs/large/export
#SBATCH --job-name=cmbert-run
#SBATCH --nodes=1
#SBATCH --ntasks=1
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
if [[ ${1:-} != cmbert && ${1:-} != data_tools ]]; then
    echo "run.sh: name a command: sbatch slurm/run.sh data_tools|cmbert ..." >&2
    exit 2
fi
run_one -m "$@"
