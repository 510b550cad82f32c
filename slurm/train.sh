# shellcheck shell=bash
# What stage1.sh and stage2.sh share. Source it inside a job at the repository's root, then call
#   train_stage RECIPE [options of `cmbert train`]
# One task per GPU: srun starts them, and cmbert reads rank and world size from Slurm's variables.
source slurm/job.sh

MAX_EXCLUDED=${CMBERT_MAX_EXCLUDED:-8} # unfit nodes; with more it is probably not the nodes (ours)

train_stage() {
    local recipe=$1 run newest lives
    local -a nodes
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # The address by which Slurm itself reaches the first node; its name need not resolve.
    MASTER_ADDR=$(scontrol show node "${nodes[0]}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # two jobs that share a node must not meet
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    say "$recipe on ${SLURM_NTASKS:-1} ranks, ${#nodes[@]} nodes, rendezvous $MASTER_ADDR:$MASTER_PORT"
    preflight "$@"
    # --wait ends the ranks that still wait for a dead one, and leaves time to those that are about to end by themselves.
    start --wait=60 -m cmbert train "$@"
    case $code in
        0) say "finished" ;;
        2) say "a mistake to mend, see above; not requeued" ;;
        *) go_on "$(stopped || echo "the ranks ended with code $code")" ;;
    esac
    exit "$code"
}

# Let the nodes be checked; sets run, newest, lives. An unfit node is not used again by this job.
preflight() {
    local result="slurm-$SLURM_JOB_ID.preflight" bad excluded
    rm -rf "$result"
    # --wait=0: the others say who did not answer.
    start --wait=0 -m cmbert preflight "$@" --result "$result" --nodes "$(IFS=,; echo "${nodes[*]}")" \
        ${CMBERT_PREFLIGHT_SECONDS:+--wait-seconds "$CMBERT_PREFLIGHT_SECONDS"} --max-lives "$MAX_LIVES"
    IFS=$'\t' read -r run newest lives 2>/dev/null <"$result/life" || true
    bad=$(cut -f1 "$result/bad_nodes" 2>/dev/null | paste -sd,) || true
    rm -rf "$result"
    if ((code == 0)); then
        return
    elif [[ -n $bad ]]; then
        excluded=$(job_field ExcNodeList)
        [[ $excluded == "(null)" ]] || bad="$excluded,$bad"
        if (($(scontrol show hostnames "$bad" | wc -l) > MAX_EXCLUDED)); then
            say "unfit nodes: $bad; more than CMBERT_MAX_EXCLUDED=$MAX_EXCLUDED, not requeued"
            exit "$code"
        fi
        requeue "unfit nodes" "$bad"
    elif ((code == 69)) || stopped >/dev/null; then
        go_on "the preflight ended with code $code"
    fi
    say "the preflight ended with code $code, see above; not requeued"
    exit "$code"
}

# Say whether the ranks were asked to stop: exit code 75, or a signal before they could listen to it (USR1, TERM).
stopped() {
    ((code == 75 || code == 138 || code == 143)) && echo "the ranks were asked to stop"
}

# Requeue, unless this and the lives before it have left no newer checkpoint.
go_on() {
    local now
    now=$(cat "${run:-}/checkpoints/latest" 2>/dev/null || echo -)
    if [[ $now == "${newest:--}" ]] && ((${lives:-0} >= MAX_LIVES)); then
        say "$1; not requeued: $lives lives in a row (CMBERT_MAX_LIVES) left no checkpoint newer than $now"
        exit "$code"
    fi
    requeue "$1"
}
