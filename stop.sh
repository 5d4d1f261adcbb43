#!/usr/bin/env bash
# Stops the server that this folder's settings started, and its workers; nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# Whichever was installed: the running server is found by its pid file, not by its environment.
for venv in .venv .venv-engines; do
    [ -x "$venv/bin/gpuserver" ] && exec "$venv/bin/gpuserver" stop
done
echo "Nothing to stop: gpuserver is not installed here."
