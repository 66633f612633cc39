#!/usr/bin/env bash
# Runs the tests with the oldest dependencies that pyproject.toml allows (constraints-minimum.txt), in .venv/minimum
# and on Python 3.10 to 3.12 (`PYTHON=python3.11 scripts/test_minimum.sh`), except slow tests and those that need a
# browser or a real model. Arguments go to pytest. Lint, format and types are checked by test.sh. Downloads some gigabytes of CUDA
# libraries, since the registry has no torch 2.7 without them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[test]" minimum
cd "$repository"
"$bin/python" -m pip check
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadfile
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
exec "$bin/python" -m pytest -m "not slow and not browser and not registry" "$@"
