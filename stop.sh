#!/usr/bin/env bash
# Stops the server that this folder's settings started, and its workers; nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ -x .venv/bin/gpuserver ] || { echo "Nothing to stop: gpuserver is not installed here."; exit 0; }
exec .venv/bin/gpuserver stop
