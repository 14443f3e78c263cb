"""A built package is whole: it finds the shipped policy in an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LOAD = """
import sys
from pathlib import Path
import rdvla
from rdvla.policies.network import load_policy

assert Path(rdvla.__file__).is_relative_to(sys.argv[1]), rdvla.__file__
print(load_policy("rdvla_tiny_libero").metadata.chunk_size)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("rdvla-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_shipped_policy_loads_by_name_from_a_wheel(unpacked, tmp_path):
    command = [sys.executable, "-c", LOAD, str(unpacked)]
    environment = {"PYTHONPATH": str(unpacked), "PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"


@pytest.mark.slow
def test_the_wheel_holds_every_file_that_is_no_module(unpacked):
    kept = {".html", ".css", ".js", ".json", ".typed"}
    source = ROOT / "src" / "rdvla"
    expected = {
        path.relative_to(source) for path in source.rglob("*") if path.suffix in kept or path.name == "py.typed"
    }
    missing = {str(path) for path in expected if not (unpacked / "rdvla" / path).is_file()}
    assert not missing
    shipped = {path.relative_to(ROOT / "checkpoints") for path in (ROOT / "checkpoints").rglob("*") if path.is_file()}
    assert shipped == {
        path.relative_to(unpacked / "rdvla/shipped") for path in (unpacked / "rdvla/shipped").rglob("*.*")
    }
