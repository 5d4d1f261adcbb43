#!/usr/bin/env bash
# Installs what the tutor needs, starts it in the background and says where it is.
# --foreground keeps it here. Settings come from the environment, then .env (see .env.example).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh

case "${1:-}" in
    "" | --foreground) ;;
    *) die "usage: ./start.sh [--foreground]" ;;
esac
# What test.sh installed holds all that is needed here.
wanted=(requirements/base.txt)
[ -e .venv/.with-tests ] && wanted+=(requirements/test.txt)
install_packages "${wanted[@]}"
if [ "${1:-}" = --foreground ]; then
    exec .venv/bin/gpuserver serve
fi
exec .venv/bin/gpuserver start
