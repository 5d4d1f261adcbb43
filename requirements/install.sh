# Sourced by start.sh, stop.sh and test.sh: which environment a profile runs in, and making it:
# pinned packages are installed into it once a change.
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

# The profile that the environment, or else .env, names.
profile() {
    local named=${PROFILE:-}
    if [ -z "$named" ] && [ -f .env ]; then
        named=$(sed -nE 's/^[[:space:]]*(export[[:space:]]+)?PROFILE[[:space:]]*=[[:space:]]*//p' .env |
            tail -n 1 | sed -E 's/[[:space:]]*(#.*)?$//' | tr -d "\"'")
    fi
    printf '%s' "${named:-embedded}"
}

# The environment a profile runs in.
venv_of() {
    case "$1" in
        embedded) printf .venv ;;
        cpu | gpu) printf .venv-engines ;;
        *) die "PROFILE is '$1'. Fix: set it to embedded, cpu or gpu." ;;
    esac
}

# install_profile PROFILE [with-tests]: what a profile needs, and what its tests need.
install_profile() {
    local chosen=$1 venv
    local lists=(requirements/base.txt)
    venv=$(venv_of "$chosen")
    [ "$venv" = .venv-engines ] && lists=("requirements/engines-$chosen.txt")
    if [ "$chosen" = gpu ] && ! has_gpu; then
        die "PROFILE=gpu needs an NVIDIA GPU, and nvidia-smi shows none here. Fix: install the GPU's driver, or set PROFILE to cpu or embedded."
    fi
    # Builds for a CPU and for a GPU share names of files, so neither can replace the other.
    if [ -e "$venv/.profile" ] && [ "$(cat "$venv/.profile")" != "$chosen" ]; then
        echo "Removing $venv, which is for PROFILE=$(cat "$venv/.profile") …"
        rm -rf "$venv"
    fi
    mkdir -p "$venv"
    printf '%s\n' "$chosen" >"$venv/.profile"
    [ "${2:-}" = with-tests ] && touch "$venv/.with-tests"
    # What the tests had installed stays.
    [ -e "$venv/.with-tests" ] && lists+=(requirements/test.txt)
    install_packages "$venv" "${lists[@]}"
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; }

# install_packages VENV FILE...: every package of the files, exactly as pinned.
install_packages() {
    local venv=$1 wanted have python
    shift
    wanted=$(cat "$@" pyproject.toml | cksum)
    have=$(cat "$venv/.installed" 2>/dev/null || true)
    [ "$wanted" = "$have" ] && return
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python)
        echo "Creating $venv with $python …"
        "$python" -m venv "$venv" ||
            die "Can't create $venv. Fix: install the venv module (Debian: apt-get install python3-venv) and remove $venv."
    fi
    echo "Installing $(cat "$@" | grep -c '==') pinned packages into $venv …"
    local files=()
    local file
    for file in "$@"; do files+=(-r "$file"); done
    case "$*" in *engines-cpu*) install_torch_for_cpu "$venv" ;; esac
    pip_install "$venv" "${files[@]}" -e . || die "$FAILED"
    case "$*" in
        # On a CPU build of torch these GPU libraries can't be loaded; who uses them does without.
        *engines-cpu*)
            rm -f "$venv"/lib/python3*/site-packages/torchaudio/lib/*.so \
                "$venv"/lib/python3*/site-packages/torchcodec/libtorchcodec_image.so
            ;;
    esac
    printf '%s\n' "$wanted" >"$venv/.installed"
}

FAILED="Installing failed. Fix: check the network connection and the free disk space, and run this again."

# The lists are complete; --no-deps keeps packages whose metadata asks for a GPU build out.
pip_install() {
    local venv=$1
    shift
    if command -v uv >/dev/null 2>&1; then
        uv pip install --python "$venv/bin/python" --no-deps "$@"
    else
        "$venv/bin/python" -m pip install --no-deps --disable-pip-version-check "$@"
    fi
}

# The package index has torch for GPUs; its CPU build comes from the machine's own package sources,
# or else from PyTorch's.
install_torch_for_cpu() {
    local torch
    torch=$(sed -n 's/^torch==.*/&+cpu/p' requirements/engines-cpu.txt)
    pip_install "$1" "$torch" 2>/dev/null ||
        pip_install "$1" --index-url https://download.pytorch.org/whl/cpu "$torch" || die "$FAILED"
}
