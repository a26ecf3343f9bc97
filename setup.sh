#!/usr/bin/env bash
# Makes the virtual environment that the Makefile's targets use.
# PyTorch goes first and pinned: left to the resolver, a machine without a GPU would fetch gigabytes of CUDA.
set -euo pipefail
# EXTRAS names what else to install: dev, or dev,peers to have the kernels of others that the simulator is tested with.
python=${PYTHON:-python3} venv=${VENV:-.venv} torch=${TORCH:-torch==2.13.0} extras=${EXTRAS:-dev}

version() { "$1" -c 'import torch; print(torch.__version__)' 2>/dev/null; }

if [ ! -x "$venv/bin/python" ]; then
  if version "$python" >/dev/null; then
    "$python" -m venv --system-site-packages "$venv"      # this machine's own PyTorch stays in use
  else
    "$python" -m venv "$venv"
  fi
fi
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if ! version "$venv/bin/python" >/dev/null; then
  if command -v nvidia-smi >/dev/null 2>&1; then torch="torch>=2.9"; fi
  echo "installing $torch"
  pip "$torch"
fi
echo "using PyTorch $(version "$venv/bin/python"); installing cute_attn with $extras"
pip -e ".[$extras]"
# The frontend of cuDNN, one of the peers, asks for the DSL's libraries for CUDA 13 besides: 90 MB that it does not need.
case ",$extras," in *,peers,*) pip --no-deps nvidia-cudnn-frontend==1.32.0 ;; esac
