#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes an environment for training beside this file, in .venv-train. No host's Python is changed.
# It can be run again, and from any folder. What it downloads it tells first, and asks.
#
#   sh setup-train.sh [--yes] [--torch BUILD]     auto (fits the GPU's driver), cpu, cu126, ...;
#                                                 default: what the package index has
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python="$here/.venv-train/bin/python"

stop() {
    echo "$1" >&2
    exit 1
}

if command -v uv >/dev/null 2>&1; then
    uv=$(command -v uv)
else
    uv="$here/.venv-uv/bin/uv"
    if [ ! -x "$uv" ]; then
        echo "Fetching uv, which installs Python and packages (about 25 MB, into .venv-uv) ..."
        "${PYTHON:-python3}" -m pip install --quiet --target "$here/.venv-uv" uv ||
            stop "Without pip uv cannot be fetched: install uv by your system's means, or python3-pip."
    fi
fi

if [ ! -x "$python" ]; then
    # Downloads a Python (about 35 MB) only where there is none of these versions.
    "$uv" venv --quiet --python ">=3.11,<3.14" "$here/.venv-train" ||
        stop "uv could not make $here/.venv-train; what it said is above."
fi
exec "$python" "$here/setup_train.py" --uv "$uv" "$@"
