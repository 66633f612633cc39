#!/usr/bin/env bash
# All checks: lint, format, types, tests. Further words go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[test]"
cd "$repository"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" --strict lit_attr
exec "$bin/python" -m pytest "$@"
