"""Every Python that is promised reads every file; what a robot installs runs on each (tests/robot)."""

import subprocess
import sys

import pytest

from pythons import ROOT, interpreter, promised


def test_this_python_is_promised():
    assert ".".join(map(str, sys.version_info[:2])) in promised()


@pytest.mark.parametrize("version", promised())
def test_every_file_compiles_without_a_warning(version, tmp_path):
    command = [interpreter(version), "-W", "error", "-m", "compileall", "-q", "src", "packages", "tests"]
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
