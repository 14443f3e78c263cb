#!/usr/bin/env bash
# rdvla beside others: in each world import, one decision, one training step, one episode. All print the same decision.
#   scripts/worlds.sh [lowest] [lerobot-0.4] [lerobot-0.6]      default: all; versions are in constraints/
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
[ $# -gt 0 ] || set -- lowest lerobot-0.4 lerobot-0.6
for name in "$@"; do
    folder=.venv-$name
    case $name in
        lowest)
            if [ ! -f "$folder/.installed" ]; then
                "${PYTHON:-python3.11}" -m venv --clear "$folder"
                "$folder/bin/python" -m pip --disable-pip-version-check install -q -c constraints/lowest.txt \
                    -e '.[data,client]' openpi-client
                touch "$folder/.installed"
            fi ;;
        lerobot-0.4 | lerobot-0.6) scripts/lerobot_env.sh "${name#lerobot-}" ;;
        *) echo "worlds: '$name' is not lowest, lerobot-0.4 or lerobot-0.6." >&2; exit 1 ;;
    esac
    echo "== $name"
    "$folder/bin/python" scripts/one_of_each.py
done
