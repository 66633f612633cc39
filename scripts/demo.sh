#!/usr/bin/env bash
# The demo: the model that comes with lit-attr over the facts that come with it, into ./lit_attr_output.
# Further words go to `lit-attr predict`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ""
exec "$bin/lit-attr" predict "$@"
