#!/bin/bash
# Raw text to cleaned text. From the repository's root, with the options of `data_tools clean`:
#   sbatch --array=0-31 slurm/clean.sh --input raw/a --config recipes/large/clean/a.toml --output text/a --against text/heldout
#   sbatch --dependency=afterok:JOB --array=0-31 slurm/clean.sh ...     the same for the next pass, until all are complete
#   sbatch --dependency=afterok:JOB slurm/clean.sh ...     the same without --array does what is left, and publishes
# Killed, out of time or requeued, a job goes on with what is missing. submit_all.sh knows how many passes there are.
#SBATCH --job-name=cmbert-clean
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
run_share clean "$@"
