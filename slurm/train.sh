# shellcheck shell=bash
# What stage1.sh and stage2.sh share. Source it inside a job at the repository's root, then call
#   train_stage RECIPE [options of `cmbert train`]
# One task per GPU: srun starts them, and cmbert reads rank and world size from Slurm's variables.
source slurm/job.sh

MAX_EXCLUDED=${CMBERT_MAX_EXCLUDED:-8} # unfit nodes; with more it is probably not the nodes

train_stage() {
    local recipe=$1 run newest lives reach last found
    local -a nodes
    found=$(slurm_says '.+' show hostnames "$SLURM_JOB_NODELIST") || no_answer
    mapfile -t nodes <<<"$found"
    # The address by which Slurm itself reaches the first node; its name need not resolve.
    found=$(slurm_says 'NodeAddr=[^[:space:]]+' show node "${nodes[0]}") || no_answer
    export MASTER_ADDR=${found#*=}
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # two jobs that share a node must not meet
    while is_taken "$MASTER_PORT"; do
        say "port $MASTER_PORT is another program's"
        MASTER_PORT=$((20000 + (MASTER_PORT + 1 - 20000) % 12000))
    done
    export MASTER_PORT
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    say "$recipe on ${SLURM_NTASKS:-1} ranks, ${#nodes[@]} nodes, rendezvous $MASTER_ADDR:$MASTER_PORT"
    warn_of_time
    preflight "$@"
    # --wait ends what has not noticed, so long after a rank's end: under NCCL a rank waits for a dead one. Who leaves by
    # itself needs less: the watchdog's report is out before the first rank goes, and the others follow within 6 s (5 to
    # write stacks, 1 to part). With Slurm's KILL of a second all are gone within ten.
    start --wait=8 -m cmbert train "$@"
    case $code in
        0) check_end ;;
        2) say "a mistake to mend, see above; not requeued" ;;
        73) say "the run is another job's or life's now, see above; not requeued" ;;
        74) go_on "an input/output error or a killed process, see above, that may pass" ;;
        *) go_on "$(stopped || echo "the ranks ended with code $code")" ;;
    esac
    exit "$code"
}

# Whether something listens at a port here; the batch script is on rank 0's node.
is_taken() {
    (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || (: <>"/dev/tcp/$MASTER_ADDR/$1") 2>/dev/null
}

# Slurm's request to save must not come at the beginning of a life, where it ends it.
warn_of_time() {
    local limit lead
    limit=$(job_field TimeLimit) || no_answer
    lead=$(sed -n 's/^#SBATCH --signal=.*@//p' "$0")
    if (($(seconds_of "$limit") <= lead + 60)); then # it may come a minute earlier
        say "warning: --time is $limit, and USR1 comes $lead to $((lead + 60)) s before its end (--signal): every life saves" \
            "as soon as it has begun; give more --time"
    fi
}

# srun's 0 is not enough: it has come after a node was lost. The newest checkpoint says whether the stage is finished.
check_end() {
    local step
    step=$(newest_checkpoint)
    step=$((10#0${step##*[_-]}))
    if ((step >= last)); then
        say "finished"
        exit 0
    fi
    code=75 # not finished: what waits with afterok must not begin
    if ((step >= reach)); then
        say "stopped by --max-steps at step $step of $last: not finished; not requeued"
        exit "$code"
    fi
    go_on "srun returned 0 at step $step of $last"
}

# The name of the run's newest whole checkpoint; - for none.
newest_checkpoint() {
    local path
    path=$(printf '%s\n' "${run:-}"/checkpoints/step_*/MANIFEST.json | grep -E '/step_[0-9]+/MANIFEST' | sort | tail -n 1) || true
    path=${path%/MANIFEST.json}
    path=${path##*/}
    echo "${path:--}"
}

# Let the nodes be checked; sets run, newest, lives, reach, last. An unfit node is not used again by this job.
preflight() {
    local result="slurm/logs/$SLURM_JOB_ID.preflight" bad excluded found pause
    rm -rf "$result"
    # srun itself ends with 1, too, where it does not reach the controller; then nothing has begun.
    for pause in 5 60 ""; do
        # --wait=0: the others say who did not answer.
        start --wait=0 -m cmbert preflight "$@" --result "$result" --nodes "$(IFS=,; echo "${nodes[*]:-}")" \
            ${CMBERT_PREFLIGHT_SECONDS:+--wait-seconds "$CMBERT_PREFLIGHT_SECONDS"} --max-lives "$MAX_LIVES"
        if ((code != 1)) || [[ -z $pause || -e $result ]]; then
            break
        fi
        say "the preflight did not begin; once more in $pause s"
        sleep "$pause"
    done
    IFS=$'\t' read -r run newest lives reach last 2>/dev/null <"$result/life" || true
    bad=$(cut -f1 "$result/bad_nodes" 2>/dev/null | paste -sd,) || true
    rm -rf "$result"
    if ((code == 0)) && [[ -n ${last:-} ]]; then
        return
    elif ((code == 0)); then
        code=2
        say "the preflight left no $PWD/$result: this folder must be the same on all nodes; not requeued"
        exit "$code"
    elif [[ -n $bad ]]; then
        excluded=$(job_field ExcNodeList '[^[:space:]]*') || no_answer
        [[ -z $excluded || $excluded == "(null)" ]] || bad="$excluded,$bad"
        found=$(slurm_says '.+' show hostnames "$bad") || no_answer
        if (($(wc -l <<<"$found") > MAX_EXCLUDED)); then
            say "unfit nodes: $bad; more than CMBERT_MAX_EXCLUDED=$MAX_EXCLUDED, not requeued"
            exit "$code"
        fi
        requeue "unfit nodes" "$bad"
    elif ((code == 69 || code == 74)) || stopped >/dev/null; then
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
    now=$(newest_checkpoint)
    if [[ $now == "${newest:--}" ]] && ((${lives:-0} >= MAX_LIVES)); then
        say "$1; not requeued: $lives lives in a row (CMBERT_MAX_LIVES) left no checkpoint newer than $now"
        exit "$code"
    fi
    requeue "$1"
}
