# Sourced by start.sh and test.sh: makes .venv and installs pinned packages into it, once a change.
# shellcheck shell=bash

die() { printf '%s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
        then
            printf '%s' "$candidate"
            return
        fi
    done
    die "gpuserver needs Python 3.11, 3.12 or 3.13. Fix: install one (Debian: apt-get install python3 python3-venv), or set PYTHON to it."
}

# install_packages FILE...: every package of the files, exactly as pinned.
install_packages() {
    local wanted have python
    wanted=$(cat "$@" pyproject.toml | cksum)
    have=$(cat .venv/.installed 2>/dev/null || true)
    [ "$wanted" = "$have" ] && return
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "Creating .venv with $python …"
        "$python" -m venv .venv ||
            die "Can't create .venv. Fix: install the venv module (Debian: apt-get install python3-venv) and remove .venv."
    fi
    echo "Installing $(cat "$@" | grep -c '==') pinned packages into .venv …"
    local files=()
    local file
    for file in "$@"; do files+=(-r "$file"); done
    # The lists are complete; --no-deps keeps packages whose metadata asks for a GPU build out.
    if command -v uv >/dev/null 2>&1; then
        uv pip install --python .venv/bin/python --no-deps "${files[@]}" -e .
    else
        .venv/bin/python -m pip install --no-deps --disable-pip-version-check "${files[@]}" -e .
    fi || die "Installing failed. Fix: check the network connection and run this again."
    printf '%s\n' "$wanted" >.venv/.installed
}
