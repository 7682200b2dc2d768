#!/bin/bash
# A 70B policy on four nodes of eight GPUs: two train with FSDP2, two serve rollouts with two vLLM servers each
# on four GPUs. Submit it in the project's folder, on a disk that all nodes see:
#
#   sbatch configs/launch/slurm.sh
#   sbatch configs/launch/slurm.sh configs/policy/mine.yaml output=/shared/runs/mine
#   sbatch --nodes=2 --export=ALL,SERVING=0,COMMAND=train-reward configs/launch/slurm.sh \
#     configs/reward/nemotron-70b-lora.yaml
#
# Submitted again or requeued, it resumes. Run on CPUs with a real Slurm (docs/campaigns.md); not on a GPU.
#SBATCH --job-name=rlhf
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=rlhf-%j.log
#SBATCH --open-mode=append
set -euo pipefail

COMMAND=${COMMAND:-align-policy}
GPUS=${GPUS:-8}                     # of a node
SERVING=${SERVING:-2}               # nodes that serve; the others train
SHARDS=${SHARDS:-4}                 # GPUs of one server
LAUNCH=${LAUNCH:-configs/launch/fsdp2.yaml}
BASE=${BASE:-meta-llama/Llama-3.1-70B-Instruct}
[ $# -gt 0 ] || set -- configs/policy/nemotron-70b-4nodes.yaml

source .venv/bin/activate
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
TRAINING=$((SLURM_JOB_NUM_NODES - SERVING))
export NCCL_DEBUG=WARN OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export RLHF_ROLLOUT_TOKEN=${RLHF_ROLLOUT_TOKEN:-$(openssl rand -hex 16)}

URLS=()
for ((node = TRAINING; node < SLURM_JOB_NUM_NODES; node++)); do
  for ((gpu = 0; gpu < GPUS; gpu += SHARDS)); do
    PORT=$((8000 + gpu / SHARDS))
    URLS+=("http://${NODES[node]}:$PORT")
    # The step's own environment: srun sets CUDA_VISIBLE_DEVICES to all GPUs of the job.
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_API_KEY=$RLHF_ROLLOUT_TOKEN \
      srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[node]}" --export=ALL \
      env CUDA_VISIBLE_DEVICES="$(seq -s, "$gpu" $((gpu + SHARDS - 1)))" \
      vllm serve "$BASE" --port "$PORT" --tensor-parallel-size "$SHARDS" --gpu-memory-utilization 0.9 \
      --enable-lora --max-lora-rank 32 --max-model-len 4096 \
      > "rlhf-$SLURM_JOB_ID-server-${NODES[node]}-$PORT.log" 2>&1 &
  done
done
for URL in "${URLS[@]}"; do           # a server that does not come up within an hour ends the job
  timeout 3600 bash -c "until curl -sf $URL/health; do sleep 10; done"
done
if ((SERVING > 0)); then
  set -- "$@" "rollouts.servers=[$(IFS=,; echo "${URLS[*]}")]"
fi

HEAD=${NODES[0]}
export HEAD TRAINING GPUS LAUNCH COMMAND
# The quotes are single: SLURM_PROCID is each node's own.
srun --overlap --nodes="$TRAINING" --ntasks="$TRAINING" --ntasks-per-node=1 \
  --nodelist="$(IFS=,; echo "${NODES[*]:0:TRAINING}")" \
  --kill-on-bad-exit=1 --export=ALL bash -c '
  exec accelerate launch --config_file "$LAUNCH" --num_machines "$TRAINING" \
    --num_processes $((TRAINING * GPUS)) \
    --machine_rank "$SLURM_PROCID" --main_process_ip "$HEAD" --main_process_port 29500 \
    -m rlhf.cli "$COMMAND" "$@" --resume' train "$@"
