#!/usr/bin/env bash
# Train under Slurm. Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG [options of train.py]' >&2
  exit 2
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
# The interpreter: that of PYTHON, of the active environment, or of the one that `make setup` made.
venv=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}
python=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || echo python3)}
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$partition" --job-name="$job" --gres=gpu:"$per_node" --ntasks="$gpus" \
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} "$python" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
