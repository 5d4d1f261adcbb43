#!/usr/bin/env bash
# Installs what the tests need and runs all of them, at last those of the large engines, in an
# environment of their own. `./test.sh fast` leaves these and the slow ones out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh

case "${1:-}" in
    "" | fast) ;;
    *) die "usage: ./test.sh [fast]" ;;
esac

# Speech to recognise, a browser to drive, and a font for its Chinese.
need_debian() {
    local missing=()
    command -v flite >/dev/null || missing+=(flite)
    if [ "${1:-}" != fast ]; then
        command -v chromium >/dev/null || missing+=(chromium)
        [ -e /usr/share/fonts/truetype/wqy/wqy-microhei.ttc ] || missing+=(fonts-wqy-microhei)
    fi
    [ ${#missing[@]} -eq 0 ] && return
    local sudo=""
    [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
    local line="apt-get update && apt-get install -y ${missing[*]}"
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! $sudo true 2>/dev/null; }; then
        die "The tests need: ${missing[*]}. Run this, then ./test.sh again:
    sudo sh -c '$line'"
    fi
    echo "Installing ${missing[*]} …"
    DEBIAN_FRONTEND=noninteractive $sudo sh -c "$line" >/dev/null ||
        die "Installing ${missing[*]} failed. Fix: run it by hand to see why: sudo sh -c '$line'"
}

step() { printf '\n== %s\n' "$*"; }

install_profile embedded with-tests
need_debian "${1:-}"

step "ruff"
.venv/bin/ruff check gpuserver tests bench
.venv/bin/ruff format --check gpuserver tests bench
step "mypy"
.venv/bin/mypy
step "import contracts"
.venv/bin/lint-imports
# Each worker and each process that a test starts would compile all of it again.
unset PYTHONDONTWRITEBYTECODE
step "tests"
.venv/bin/python -m pytest -n 3 -m "not slow and not browser"
[ "${1:-}" = fast ] && exit

step "slow tests"
.venv/bin/python -m pytest -n 2 --dist loadfile -m "slow or browser"

# On a machine with a GPU that the engines were installed for, they are tested on it.
build=$(cat .venv-engines/.profile 2>/dev/null || echo cpu)
step "large engines, built for: $build"
install_profile "$build" with-tests
exec .venv-engines/bin/python -m pytest -c tests/engines/pytest.ini tests/engines
