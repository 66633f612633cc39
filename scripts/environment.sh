# Sourced by the scripts beside it: `prepare EXTRAS` makes .venv in the repository, once, with lit-attr and its
# pinned dependencies, and leaves the path of its programs in $bin.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$repository/.venv/bin

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "lit-attr needs Python 3.10 to 3.13; none is on the path" >&2
    return 1
}

prepare() {
    local extras=$1 python done_mark
    # What was installed, and from which pins: after a change of either, pip runs again.
    done_mark=$repository/.venv/installed${extras}-$(cat "$repository/pyproject.toml" "$repository/constraints.txt" | cksum | tr ' ' '-')
    if [ -e "$done_mark" ]; then
        return
    fi
    if [ ! -x "$bin/python" ]; then
        python=$(find_python)
        "$python" -m venv "$repository/.venv" || {
            rm -rf "$repository/.venv"
            echo "python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    echo "Installing lit-attr${extras} into $repository/.venv ..." >&2
    "$bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$repository/constraints.txt" --editable "$repository$extras"
    touch "$done_mark"
}
