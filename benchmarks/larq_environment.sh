#!/usr/bin/env bash
# Makes the environment of the Larq side of networks.py: larq_environment.sh [FOLDER, default build/larq]
# Needs x86-64 Linux and Python 3.10 or 3.11 (LARQ_PYTHON names it): there are no wheels for others. About 1.5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/larq}
python=${LARQ_PYTHON:-}
for candidate in python3.11 python3.10; do
    [ -n "$python" ] || { command -v "$candidate" >/dev/null && "$candidate" --version >/dev/null 2>&1 && python=$candidate; } || true
done
[ -n "$python" ] || { echo "no Python 3.10 or 3.11 found: set LARQ_PYTHON" >&2; exit 2; }
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet 'larq-compute-engine==0.16.0' 'larq==0.13.*' 'tensorflow-cpu==2.16.*' 'tf-keras==2.16.*' 'numpy<2'
echo "made $folder: python benchmarks/networks.py --larq $folder"
