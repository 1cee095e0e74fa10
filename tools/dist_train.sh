#!/usr/bin/env bash
# Train on several GPUs (or CPU processes) of one or more machines.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment, as torchrun means them;
# TORCHRUN_ARGS for its other options.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo 'usage: dist_train.sh CONFIG NUM_PROCESSES [options of train.py]' >&2
  exit 2
fi
config=$1 processes=$2
shift 2
# The interpreter: that of PYTHON, of the active environment, or of the one that `make setup` made.
venv=${VIRTUAL_ENV:-$(dirname "$0")/../.venv}
python=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || echo python3)}
# shellcheck disable=SC2086  # TORCHRUN_ARGS holds several words
exec "$python" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$processes" ${TORCHRUN_ARGS:-} \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
