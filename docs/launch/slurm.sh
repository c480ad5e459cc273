#!/bin/bash
# Two nodes of eight GPUs. This was not run: no Slurm was available.
#SBATCH --nodes=2
# JAX runs one process for each GPU.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# Slurm sends SIGTERM two minutes before the time ends, and the run saves.
#SBATCH --signal=TERM@120

srun mtdml train --config=fer2013_gpu --workdir="$HOME/runs/fer2013" --config.data.dir="$HOME/data" --distributed
code=$?
# 75: stopped and saved. 134: another process was lost, and JAX ended this one. The requeued job continues.
if [ "$code" = 75 ] || [ "$code" = 134 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
