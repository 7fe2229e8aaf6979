#!/usr/bin/env bash
# check_wheel.sh FILE [reference]: installs a wheel, or an sdist, into a fresh environment beside the torch in TORCH, and
# runs check_installed.py there, away from the sources. There is no compiler on PATH, but for an sdist that shall be built:
# with `reference` it is installed without one.
set -euo pipefail
file=$(realpath "$1")
tests=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
python=$place/venv/bin/python
unset PYTHONPATH CXX CC
pip() { "$python" -m pip -q --disable-pip-version-check "$@"; }
pip install "$TORCH" 2>/dev/null || pip install "$TORCH" --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
case ${2:-}$file in
  reference*) built=reference ;;
  *+cu*) built=cpu,cuda ;;
  *) built=cpu ;;
esac
bare=$place/venv/bin
case ${2:-}$file in
  *.tar.gz) test "$built" = reference || bare=$PATH ;;
esac
start=$(date +%s)
export FROZEN_KERNELS_CUDA=0
PATH=$bare pip install "$file"
echo "installed in $(($(date +%s) - start)) s"
cp "$tests/check_installed.py" "$place"
cd "$place"
PATH=$bare "$python" check_installed.py "$built"
echo "$(basename "$file"): $(wc -c <"$file") bytes, $built, works beside $TORCH"
