# shellcheck shell=bash
# What every job script here does: the site's facts, one way to start Python, one way to end. Source it inside a job, at the
# repository's root.
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "$0: not in a job; submit it: sbatch slurm/${0##*/}" >&2
    exit 2
fi
source slurm/env.sh
source slurm/limits.sh

# torch's segments of GPU memory grow, so that batches of other sizes leave no holes; left alone if you have set it.
if [[ -z ${PYTORCH_ALLOC_CONF:-}${PYTORCH_CUDA_ALLOC_CONF:-} ]]; then
    export PYTORCH_ALLOC_CONF=expandable_segments:True
fi

MAX_RESTARTS=${CMBERT_MAX_RESTARTS:-100} # times that a job requeues itself
MAX_LIVES=${CMBERT_MAX_LIVES:-3}         # of a job in a row that may fail without getting on
MAX_WAIT=3600 # seconds for Slurm to answer: a controller that restarts is back in minutes, and a job that waits holds nodes

RESTARTS=${SLURM_RESTART_COUNT:-0}
# The number of an array's last job is the array's own, so that scontrol would take all of it.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
ended_by_slurm=

say() {
    echo "$(date -Is) job $JOB restart $RESTARTS: $*"
}

# Run a command again until it succeeds: a controller that restarts or is too busy answers later. Fails after MAX_WAIT.
patiently() {
    local pause=1 waited=0
    until "$@"; do
        if ((waited >= MAX_WAIT)); then
            say "no answer from Slurm in $waited s: $*" >&2
            return 1
        fi
        sleep "$pause"
        waited=$((waited + pause))
        pause=$((pause < 32 ? 2 * pause : 32))
    done
}

# What matches a pattern in the answer to a question, a match a line; without a match it is no answer.
#   slurm_says PATTERN WORDS OF scontrol
slurm_says() {
    patiently matches_of "$@"
}

matches_of() {
    local pattern=$1 answer
    shift
    answer=$(scontrol "$@") && grep -oE -- "$pattern" <<<"$answer"
}

# One field of what Slurm knows about this job.
#   job_field NAME [PATTERN OF ITS VALUE]
job_field() {
    local found
    found=$(slurm_says "(^|[[:space:]])$1=${2:-[^[:space:]]+}" show job "$JOB") || return
    found=${found%%$'\n'*}
    echo "${found#*=}"
}

# End the job because Slurm does not say what must be known to go on.
no_answer() {
    say "Slurm does not answer, see above; not requeued: submit again to go on"
    exit "${code:-1}"
}

# Each life has a log of its own: Slurm appends to one file, from which the last life's part goes to NAME.lifeN.out. A log
# that is not this job's alone stays as it is. Without an array, %a is a number that says nothing.
own_log() {
    local log plain
    log=$(readlink "/proc/$$/fd/1") || return 0
    if [[ ! -f $log || $log != *"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"*.out ]]; then
        return 0
    fi
    plain=${log/_4294967294/}
    if ((RESTARTS > 0)) && [[ -s $plain ]]; then
        cp "$plain" "${plain%.out}.life$((RESTARTS - 1)).out" && : >"$plain"
    fi
    [[ $plain == "$log" ]] || mv "$log" "$plain"
}

# Start a command of Python's on ranks and wait for it; its exit code is in $code.
#   start "SRUN OPTIONS" -m cmbert train ...
start() {
    local -a options
    local step
    read -ra options <<<"$1"
    shift
    trap on_term TERM
    # srun does not take over sbatch's --cpus-per-task since Slurm 22.05. A rank that dies must not kill the others: they
    # save or say what they were waiting for.
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 ${options[@]+"${options[@]}"} \
        ${CMBERT_SRUN_OPTIONS[@]+"${CMBERT_SRUN_OPTIONS[@]}"} \
        ${CMBERT_PREFIX[@]+"${CMBERT_PREFIX[@]}"} "$CMBERT_PYTHON" -u "$@" &
    step=$!
    while true; do
        code=0
        wait "$step" || code=$?
        kill -0 "$step" 2>/dev/null || break # else a signal has ended the wait
    done
    if [[ -n $ended_by_slurm ]]; then
        exit 143
    fi
}

# Slurm sends TERM to a job's script only when it ends the whole job: the time limit, scancel, a requeue from outside.
on_term() {
    local reason
    ended_by_slurm=yes
    reason=$(job_field Reason) || no_answer
    if [[ $reason == TimeLimit ]]; then
        requeue "the time limit came before the ranks had saved"
    else
        say "cancelled or requeued from outside"
    fi
}

# Put this job back into the queue, with the same number; or say why not, and end it with $code.
#   requeue WHY [NODES TO EXCLUDE]
requeue() {
    local why=$1 exclude=${2:-} restarts state may_requeue
    restarts=$(job_field Restarts '[0-9]+') || no_answer
    if ((restarts > RESTARTS)); then # a node that was lost has come back, with this script on it
        say "$why; not requeued: Slurm has begun a newer life of this job"
        exit "$code"
    fi
    state=$(job_field JobState) || no_answer
    if [[ -z $ended_by_slurm && $state != RUNNING ]]; then
        say "$why; Slurm is ending the job"
        exit "$code"
    fi
    may_requeue=$(job_field Requeue '[0-9]+') || no_answer
    if ((may_requeue != 1)); then
        say "$why; not requeued: the job has Requeue=0"
        exit "$code"
    fi
    if ((RESTARTS >= MAX_RESTARTS)); then
        say "$why; not requeued: CMBERT_MAX_RESTARTS=$MAX_RESTARTS are used up; submit again to go on"
        exit "$code"
    fi
    say "$why; requeued${exclude:+ without $exclude}"
    trap '' TERM # Slurm ends this script now, which has one thing left to do
    patiently scontrol requeue "$JOB" || no_answer
    if [[ -n $exclude ]]; then
        patiently scontrol update "jobid=$JOB" "ExcNodeList=$exclude" || say "$exclude may be used again"
    fi
    exit "$code"
}

# Run one task and end the job as it ends; one that was killed, or met an error that may pass, is tried again.
run_one() {
    start "--nodes=1 --ntasks=1" "$@"
    if ((code == 74 && RESTARTS < MAX_LIVES)); then
        requeue "an input/output error, see above, that may pass"
    elif ((code > 128 && RESTARTS < MAX_LIVES)); then
        requeue "killed, code $code"
    fi
    say "ended with code $code"
    exit "$code"
}

# Run one command of data_tools with as many workers as CPUs; in an array it does the share of its number.
run_share() {
    local command=$1
    local -a share=()
    shift
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        share=(--num-tasks "$SLURM_ARRAY_TASK_COUNT" --task-index "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))")
    fi
    run_one -m data_tools "$command" --workers "${SLURM_CPUS_PER_TASK:-1}" "$@" ${share[@]+"${share[@]}"}
}

own_log
