# shellcheck shell=bash
# How submit_all.sh deals with one job: is it done or in the queue, would Slurm take it, submit it. Source it at the
# repository's root; in `mode` "check" nothing is submitted.
# shellcheck disable=SC2154 # submit_all.sh sets mode, jobs, checked and what it was given

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

# Submit a job without GPUs: NAME NEXT "JOBS IT NEEDS" SCRIPT AND ARGUMENTS.
cpu() {
    submit "$1" "$2" "$3" ${CMBERT_CPU_OPTIONS[@]+"${CMBERT_CPU_OPTIONS[@]}"} "${@:4}"
}

# Submit an array of such jobs, before stage 1: NAME "JOBS IT NEEDS" SCRIPT AND ARGUMENTS.
array() {
    cpu "$1" stage1 "$2" "--array=0-$((array_jobs - 1))" "${@:3}"
}
