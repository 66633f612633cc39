#!/usr/bin/env bash
# Runs the demo: the shipped model over the shipped facts, into ./lit_attr_output. Arguments go to `lit-attr predict`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ""
exec "$bin/lit-attr" predict "$@"
