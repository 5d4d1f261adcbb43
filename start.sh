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
chosen=$(profile)
venv=$(venv_of "$chosen")
install_profile "$chosen"
# So that the GPU's driver and CUDA count several GPUs alike.
export CUDA_DEVICE_ORDER="${CUDA_DEVICE_ORDER:-PCI_BUS_ID}"
if [ "${1:-}" = --foreground ]; then
    exec "$venv/bin/gpuserver" serve
fi
exec "$venv/bin/gpuserver" start
