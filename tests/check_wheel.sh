#!/usr/bin/env bash
# Installs a wheel into a fresh environment beside the torch in TORCH and runs the tests of ops there, away from the sources.
set -euo pipefail
wheel=$(realpath "$1")
tests=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
pip() { "$place/venv/bin/python" -m pip -q --disable-pip-version-check "$@"; }
pip install "$TORCH" 2>/dev/null || pip install "$TORCH" --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
pip install "$wheel" pytest
cp -r "$tests" "$place/tests"
cd "$place"
venv/bin/python -m frozen_kernels info
# without a driver the CUDA kernels are imported, say what is missing, and refuse
case $wheel in
  *+cu*) venv/bin/python -c "
import frozen_kernels as fk
why = fk.backends.report()['cuda']
assert 'not built' not in why, why
try:
    with fk.backends.use('cuda'): assert why == 'live'
except RuntimeError as refused: assert why in str(refused)
print('cuda:', why)" ;;
  *) venv/bin/python -c "
import frozen_kernels as fk
why = fk.backends.report()['cuda']
assert 'not built' in why, why
print('cuda:', why)" ;;
esac
venv/bin/python -m pytest -q -p no:cacheprovider tests/test_ops.py tests/test_lookup_kernels.py
echo "$(basename "$wheel"): $(stat -c %s "$wheel") bytes, tests of ops passed beside $TORCH"
