#!/usr/bin/env bash
# Builds, tests, measures and profiles on a GPU in under nine minutes; without one, runs what it can. Usage: gpu_suite.sh OUT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=$(realpath -m "${1:?usage: benchmarks/gpu_suite.sh OUT}")
shift
exec "${PYTHON:-python3}" -m benchmarks.gpu.suite "$OUT" "$@"
