# Sourced by the other scripts. `prepare EXTRAS` makes .venv in the repository, once, with lit-attr and its pinned
# dependencies, and sets $bin to the folder of its programs. `prepare EXTRAS minimum` makes .venv/minimum with the
# oldest dependencies. PYTHON selects the interpreter for both.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# find_python LAST: prints the first interpreter on the path from Python 3.10 to 3.LAST.
find_python() {
    local last=$1 candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    if [ -n "${PYTHON:-}" ]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $last))" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "lit-attr needs Python 3.10 to 3.$last here; ${PYTHON:-the path} has none" >&2
    return 1
}

prepare() {
    local extras=$1 kind=${2:-} python pins done_mark constraints=$repository/constraints.txt folder=$repository/.venv last=13
    if [ "$kind" = minimum ]; then
        constraints=$repository/constraints-minimum.txt folder=$repository/.venv/minimum last=12
    fi
    bin=$folder/bin
    # Its name records the extras and the pins, so that pip runs again when they change.
    pins=$(cat "$repository/pyproject.toml" "$constraints" | cksum | tr ' ' '-')
    done_mark=$folder/installed${extras}-$pins
    # [test] has what the others have.
    if [ -e "$done_mark" ] || [ -e "$folder/installed[test]-$pins" ]; then
        return
    fi
    if [ ! -x "$bin/python" ]; then
        python=$(find_python "$last")
        "$python" -m venv "$folder" || {
            rm -rf "$folder"
            echo "python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    echo "Installing lit-attr${extras} into $folder ..." >&2
    "$bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$constraints" --editable "$repository$extras"
    touch "$done_mark"
}
