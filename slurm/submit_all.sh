#!/bin/bash
# Submit a whole training, every job after those it needs. From the repository's root:
#   slurm/submit_all.sh [RECIPES [TEXT [JOBS]]]      default: recipes/large text 32
#   RECIPES   folder of stage1.toml and stage2.toml; the tokenizer they name must be there
#   TEXT      folder of the cleaned text of each shard set, under the set's last name: text/cci3_hq for .../shards/cci3_hq
#   JOBS      size of the array that makes a shard set
# Run it again whenever you like: what is done is left out, what waits or runs is kept, what failed is submitted anew.
# What Slurm would not take, or let wait for ever, is refused before anything is submitted.
set -euo pipefail
if [[ ! -f slurm/chain.py ]]; then
    echo "$PWD: not the repository's root; submit from there" >&2
    exit 2
fi
source slurm/env.sh
source slurm/limits.sh
recipes=${1:-recipes/large}
texts=${2:-text}
array_jobs=${3:-32}
if [[ ! $array_jobs =~ ^[1-9][0-9]*$ ]]; then
    echo "submit_all: JOBS: $array_jobs: must be a number from 1 on" >&2
    exit 2
fi
chain=$("$CMBERT_PYTHON" slurm/chain.py "$recipes" "$texts")

# The fields of a line of the chain.
fact() {
    awk -F'\t' -v name="$1" -v field="${2:-2}" '$1 == name {print $field}' <<<"$chain"
}

root=$(fact root)
tokenizer=$(fact tokenizer)
jobs="$root/jobs.tsv" # name and number of every job submitted; the last of a name counts

is_done() {
    [[ $mode == check ]] || printf '%-28s %-10s %-10s\n' "$1" - "done"
}

number_of() {
    # -v would read \t in a name as a tab, and awk an operand with = as a variable
    name=$1 awk -F'\t' '$1 == ENVIRON["name"] {number = $2} END {print number}' 2>/dev/null <"$jobs" || true
}

# The state of the job last submitted under a name and why it waits, if it is still in the queue and can still run.
state_of() {
    local number
    number=$(number_of "$1")
    [[ -z $number ]] || squeue --noheader --jobs="$number" --format="%T %r" 2>/dev/null |
        awk '$2 != "DependencyNeverSatisfied" {print; exit}' || true
}

# submit NAME NEXT "JOBS IT NEEDS" OPTIONS AND SCRIPT: its number is then in $job, also if it was in the queue already.
# If it has left the queue and NEXT, a job that it must precede, has not, it is done: Slurm would have cancelled NEXT.
# In mode "check" nothing is submitted: Slurm is asked whether it would take the job.
submit() {
    local name=$1 next=$2 needs=$3 state reason said
    local -a dependency=()
    shift 3
    job=$(number_of "$name")
    read -r state reason <<<"$(state_of "$name")" || true
    if [[ -n $job && -z $state && -n $(state_of "$next") ]]; then
        job=
        is_done "$name"
        return
    fi
    if [[ $mode == check ]]; then
        [[ -n $state ]] || check "$@"
        return
    fi
    needs=${needs:+afterok:${needs// /:}}
    if [[ $state == PENDING && -n $needs ]]; then
        # What it waited for may have been submitted anew; if it has begun meanwhile, that is done.
        if ! said=$(scontrol update "jobid=$job" "Dependency=$needs" 2>&1) && [[ $said != *"no longer pending"* ]]; then
            echo "$said" >&2
            exit 1
        fi
    elif [[ -z $state ]]; then
        [[ -z $needs ]] || dependency=("--dependency=$needs" --kill-on-invalid-dep=yes)
        job=$(sbatch --parsable --job-name="cmbert-$name" ${dependency[@]+"${dependency[@]}"} "$@")
        job=${job%%;*} # ;CLUSTER may follow
        printf '%s\t%s\n' "$name" "$job" >>"$jobs"
        state=submitted
    fi
    case $reason in
        Partition* | QOS* | Assoc* | BadConstraints | InvalidQOS | InvalidAccount)
            needs+=" waits for ever ($reason): scancel $job, change its options in slurm/env.sh, run this again" ;;
    esac
    printf '%-28s %-10s %-10s %s\n' "$name" "$job" "$state" "$needs"
}

# Ask Slurm whether a job could ever run, once for each kind; if not, say what to change, and end.
check() {
    local script options said remedy partition limit wanted
    local -a array
    options=("$@")
    for number in "${!options[@]}"; do
        if [[ ${options[number]} == slurm/*.sh ]]; then
            script=${options[number]}
            options=("${options[@]:0:number}")
            break
        fi
    done
    if [[ $checked == *"|$script ${options[*]:-}|"* ]]; then
        return
    fi
    checked+="|$script ${options[*]:-}|"
    case $script in
        */stage?.sh) remedy=CMBERT_STAGE_OPTIONS ;;
        */evaluate.sh) remedy=CMBERT_EVALUATE_OPTIONS ;;
        *) remedy=CMBERT_CPU_OPTIONS ;;
    esac
    if ! said=$(sbatch --test-only "$@" 2>&1); then
        case $said in
            *"job array specification"*)
                array=("$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')")
                refuse "$script" "$said" "MaxArraySize here is ${array[0]}: give a smaller JOBS: slurm/submit_all.sh $recipes $texts N" ;;
            *artition* | *ccount* | *QOS* | *qos*)
                refuse "$script" "$said" "set SBATCH_PARTITION and SBATCH_ACCOUNT in slurm/env.sh, or an option in $remedy" ;;
            *) refuse "$script" "$said" "set $remedy in slurm/env.sh to what your nodes have: --nodes, --ntasks-per-node," \
                "--gpus-per-node, --cpus-per-task, --mem, --partition (it has: ${options[*]:-nothing})" ;;
        esac
    fi
    # Slurm takes a job that asks for more time than its partition gives, and lets it wait for ever (PartitionConfig).
    partition=$(option_of partition "$script" ${options[@]+"${options[@]}"})
    partition=${partition:-$(sinfo --noheader --format=%P | sed -n 's/\*$//p' | head -n 1)}
    wanted=$(option_of time "$script" ${options[@]+"${options[@]}"})
    for limit in $(sinfo --noheader --partition="$partition" --format=%l); do
        (($(seconds_of "$wanted") > $(seconds_of "$limit"))) || return 0
    done
    [[ -z ${limit:-} ]] || refuse "$script" "--time=$wanted, and partition $partition gives $limit" \
        "set --time=$limit in $remedy in slurm/env.sh: jobs go on where they were"
}

# Say what Slurm would refuse of a kind of job, and what to do.
refuse() {
    echo "submit_all: error: $1: ${2//$'\n'/; }; nothing is submitted; ${*:3}" >&2
    exit 2
}

cpu() {
    submit "$1" "$2" "$3" ${CMBERT_CPU_OPTIONS[@]+"${CMBERT_CPU_OPTIONS[@]}"} "${@:4}"
}

# Every job of the chain, in order.
all_jobs() {
    local stage1 name folder text state number heldout needs job
    local -a before=() make
    stage1=$(fact stage1 4)
    while IFS=$'\t' read -r _ name folder text state; do
        make=(slurm/preprocess.sh --input "$text" --tokenizer "$tokenizer" --output "$folder")
        job=
        if [[ $state == missing ]]; then
            cpu "preprocess-$name" stage1 "" "--array=0-$((array_jobs - 1))" ${make[@]+"${make[@]}"}
            cpu "merge-$name" stage1 "$job" ${make[@]+"${make[@]}"}
            before+=(${job:+"$job"})
        else
            is_done "preprocess-$name"
            is_done "merge-$name"
        fi
        if [[ $stage1 == new ]]; then
            cpu "verify-$name" stage1 "$job" slurm/run.sh data_tools verify "$folder" --tokenizer "$tokenizer"
            before+=(${job:+"$job"})
        fi
    done < <(grep $'^shards\t' <<<"$chain")
    if [[ $stage1 == new ]]; then
        needs="${before[*]:-}"
        before=()
        for number in 1 2; do
            cpu "plan-stage$number" stage1 "$needs" slurm/run.sh cmbert plan "$(fact "stage$number")" \
                --gpus "$(($(stage_option nodes) * $(stage_option ntasks-per-node)))"
            before+=(${job:+"$job"})
        done
    fi
    for number in 1 2; do
        if [[ $(fact "stage$number" 4) == finished ]]; then
            is_done "stage$number"
            before=()
        else
            submit "stage$number" "" "${before[*]:-}" ${CMBERT_STAGE_OPTIONS[@]+"${CMBERT_STAGE_OPTIONS[@]}"} "slurm/stage$number.sh" \
                "$(fact "stage$number")"
            before=("$job")
        fi
    done
    if [[ -d $root/export ]]; then
        is_done export
    else
        cpu export "" "${before[*]:-}" slurm/run.sh cmbert export "$(fact stage2 3)" --output "$root/export"
        before=("$job")
    fi
    heldout=$(fact heldout)
    if [[ -f $root/eval.json ]]; then
        is_done evaluate
    elif [[ -n $heldout ]]; then
        submit evaluate "" "${before[*]:-}" ${CMBERT_EVALUATE_OPTIONS[@]+"${CMBERT_EVALUATE_OPTIONS[@]}"} slurm/evaluate.sh eval "$(fact stage2 3)" \
            --data "$heldout" --by-position --output "$root/eval.json"
    elif [[ $mode == submit ]]; then
        echo "evaluate: left out, the recipe of stage 2 has no evaluation.shards"
    fi
}

# A number that the stages ask for; of "2-4" nodes, which Slurm takes for the least and the most, the least.
stage_option() {
    local value
    value=$(option_of "$1" slurm/stage1.sh ${CMBERT_STAGE_OPTIONS[@]+"${CMBERT_STAGE_OPTIONS[@]}"})
    echo "${value%%-*}"
}

checked=
mode=check
all_jobs
mode=submit
mkdir -p "$root" slurm/logs
touch "$jobs"
all_jobs
