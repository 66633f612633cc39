#!/usr/bin/env bash
# All checks: lint, format, types, tests. Further words go to pytest. With --browser as the first word, only the
# tests that look at TensorBoard in Chromium.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[test]"
cd "$repository"
if [ "${1:-}" = --browser ]; then
    shift
    if ! command -v chromium chromium-browser google-chrome >/dev/null; then
        echo "test.sh: --browser needs Chromium, which is not here; on Debian: apt-get install chromium" >&2
        exit 1
    fi
    exec "$bin/python" -m pytest -m browser "$@"
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" --strict lit_attr
# Two files of tests at a time, each on one core; what is asked for by name runs as pytest does it.
if [ $# -eq 0 ]; then
    set -- --numprocesses 2 --dist loadfile
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
exec "$bin/python" -m pytest "$@"
