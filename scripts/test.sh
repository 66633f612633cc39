#!/usr/bin/env bash
# Runs all checks: lint, format, imports, types, tests. Arguments go to pytest. With --browser as the first argument,
# runs only the tests that open TensorBoard in Chromium.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[test]"
cd "$repository"
if [ "${1:-}" = --browser ]; then
    shift
    if ! command -v chromium chromium-browser google-chrome >/dev/null; then
        echo "test.sh: --browser needs Chromium, which is not installed; on Debian: apt-get install chromium" >&2
        exit 1
    fi
    exec "$bin/python" -m pytest -m browser "$@"
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/lint-imports"
"$bin/mypy" --strict lit_attr
# Tests start many processes, each of which would compile the package anew.
unset PYTHONDONTWRITEBYTECODE
# Two test files at a time, each on one core; with arguments, pytest runs as they say.
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadfile
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
exec "$bin/python" -m pytest "$@"
