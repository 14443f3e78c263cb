#!/usr/bin/env bash
# Sets up everything `make demo`, `make test` and `make check` need: a virtual environment, the packages at the
# versions of constraints.txt, and the few Debian libraries that headless rendering takes.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
if ! command -v "$PYTHON" >/dev/null; then
    echo "setup: no '$PYTHON' on this machine. Install Python 3.11 or newer, or set PYTHON=/path/to/python3.11." >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: Python 3.11 or newer is needed, found $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 1
fi

# A rendering library, EGL (Mesa's software driver will do) or OSMesa, and what the simulator's OpenCV links to.
libraries=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p)
has() { grep -q "$1" <<<"$libraries"; }
missing=""
"$PYTHON" -c 'import ensurepip' 2>/dev/null || missing="python3-venv"
if ! { has 'libEGL\.so\.1' || has 'libOSMesa\.so'; } || ! has 'libGL\.so\.1' || ! has 'libgthread-2\.0\.so\.0'; then
    missing="$missing libegl1 libgl1 libgl1-mesa-dri libglib2.0-0"
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then become=""; elif sudo -n true 2>/dev/null; then become="sudo"; else become="no"; fi
    if [ "$become" = no ] || ! command -v apt-get >/dev/null; then
        echo "setup: a virtual environment and headless rendering need Debian packages; installing them takes root." >&2
        echo "       Ask an administrator to run:  apt-get install $missing   and try again." >&2
        exit 1
    fi
    $become apt-get update -qq
    # shellcheck disable=SC2086
    $become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

.venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# torch first and alone: any other package would otherwise choose a build of its own.
pip install -q "$(grep '^torch==' constraints.txt)"
pip install -q -c constraints.txt -e '.[all]'
touch .venv/.installed
