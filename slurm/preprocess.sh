#!/bin/bash
# Text to shards. From the repository's root, with the options of `data_tools preprocess`:
#   sbatch --array=0-31 slurm/preprocess.sh --input text/a --tokenizer runs/large/tokenizer --output runs/large/shards/a
#   sbatch --dependency=afterok:JOB slurm/preprocess.sh ...     the same without --array joins what the array has made
# Killed, out of time or requeued, a job goes on with what is missing.
#SBATCH --job-name=cmbert-preprocess
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f slurm/job.sh ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/job.sh
run_share preprocess "$@"
