#!/usr/bin/env bash
# The tests with the oldest dependencies that pyproject.toml allows (constraints-minimum.txt), in .venv/minimum, on
# Python 3.10 to 3.12 (`PYTHON=python3.11 scripts/test_minimum.sh`). All but the slow ones and those that need a
# browser; lint, format and types are for test.sh. Further words go to pytest. Downloads some gigabytes of CUDA
# libraries, since the registry has torch 2.7 with no others.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[test]" minimum
cd "$repository"
"$bin/python" -m pip check
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadfile
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
exec "$bin/python" -m pytest -m "not slow and not browser" "$@"
