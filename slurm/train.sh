# shellcheck shell=bash
# What stage1.sh and stage2.sh share. Source it inside a job at the repository's root, then call
#   train_stage RECIPE [options of `cmbert train`]
# One task per GPU: srun starts them, and cmbert reads rank and world size from Slurm's variables.

train_stage() {
    local recipe=$1
    local -a nodes
    shift
    source slurm/env.sh
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # The address by which Slurm itself reaches the first node; its name need not resolve.
    MASTER_ADDR=$(scontrol show node "${nodes[0]}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # two jobs that share a node must not meet
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    echo "$(date -Is) job $SLURM_JOB_ID restart ${SLURM_RESTART_COUNT:-0}: $recipe on ${SLURM_NTASKS:-1} ranks," \
        "${#nodes[@]} nodes, rendezvous $MASTER_ADDR:$MASTER_PORT"
    # srun does not take over sbatch's --cpus-per-task since Slurm 22.05. --wait ends the ranks that still wait for a
    # dead one, and leaves time to those that are about to end by themselves.
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=60 \
        ${CMBERT_SRUN_OPTIONS[@]+"${CMBERT_SRUN_OPTIONS[@]}"} \
        ${CMBERT_PREFIX[@]+"${CMBERT_PREFIX[@]}"} "$CMBERT_PYTHON" -u -m cmbert train "$recipe" "$@"
}
