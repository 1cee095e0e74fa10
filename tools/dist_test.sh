#!/usr/bin/env bash
# Evaluate on several GPUs (or CPU processes); the environment is that of dist_train.sh.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo 'usage: dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [options of test.py]' >&2
  exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
# The interpreter: that of PYTHON, of the active environment, or of the one that `make setup` made.
venv=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}
python=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || echo python3)}
# shellcheck disable=SC2086  # TORCHRUN_ARGS holds several words
exec "$python" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$processes" ${TORCHRUN_ARGS:-} \
  "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
