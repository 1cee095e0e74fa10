#!/usr/bin/env bash
# Evaluate under Slurm; the environment is that of slurm_train.sh.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo 'usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]' >&2
  exit 2
fi
partition=$1 job=$2 config=$3 checkpoint=$4
shift 4
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
# The interpreter: that of PYTHON, of the active environment, or of the one that `make setup` made.
venv=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}
python=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || echo python3)}
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$partition" --job-name="$job" --gres=gpu:"$per_node" --ntasks="$gpus" \
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} "$python" -u "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher slurm "$@"
