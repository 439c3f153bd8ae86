#!/usr/bin/env bash
# One job on SLURM: a Ray cluster on the allocation's machines for as long as the command runs. `sbatch` this file in the
# checkout's folder. Made by `voxray launch slurm --nodes 2 --gpus 4 --time 24:00:00 -- train cxr_memory/baseline_effv2s data.path=/storage/nih storage.path=/storage/runs scale.num_workers=8`.
# Five minutes before the time is up, or when the job is preempted, the run saves; then the job is put back into the
# queue and goes on from there.
#SBATCH --job-name=baseline_effv2s
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=baseline_effv2s-%j.log
set -euo pipefail

# shellcheck source=/dev/null
. .venv/bin/activate

# Ray asks everybody for this token; the home folder is the same on all machines.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
umask 077
mkdir -p "$HOME/.ray"
if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
  python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"
fi
chmod 600 "$RAY_AUTH_TOKEN_PATH"

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
head_name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(getent ahostsv4 "$head_name" | awk 'NR == 1 {print $1}') || true
if [[ -z $head_ip ]]; then
  echo "the address of $head_name is not known here; add it to /etc/hosts, or mend the machines' DNS" >&2
  exit 1
fi
head_address=$head_ip:6379
pid_file=$(mktemp "${TMPDIR:-/tmp}/voxray.XXXXXX")

# The batch script runs on the allocation's first machine, and so does the command: its process is within reach.
asked_to_end=no
# shellcheck disable=SC2329
save_and_end() {
  asked_to_end=yes
  if [[ -s $pid_file ]]; then
    kill -TERM "$(cat "$pid_file")" || true
  fi
}
trap save_and_end USR1 TERM
trap 'rm -f "$pid_file"' EXIT

# shellcheck disable=SC2016
srun --nodes=2 --ntasks=2 \
  ray symmetric-run --address "$head_address" --min-nodes 2 -- \
  bash -c 'echo $$ > "$1"; export RAY_ADDRESS=$2; shift 2; exec "$@"' voxray "$pid_file" "$head_address" \
  python -m voxray train cxr_memory/baseline_effv2s data.path=/storage/nih storage.path=/storage/runs scale.num_workers=8 &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2> /dev/null; do  # a signal ends `wait` before the step has ended
  status=0
  wait "$step" || status=$?
done

if [[ $asked_to_end == yes && $status != 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
