"""Everything recorded with the published classes, through the same code as `rdvla doctor --golden`."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rdvla.cli.doctor import doctor_command
from rdvla.doctor.golden import run_golden

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded reference tensors are not on this machine")

app = typer.Typer()
app.command()(doctor_command)


@pytest.fixture(scope="module")
def checks():
    return [check for case in run_golden(GOLDEN) for check in case]


@pytest.mark.slow
@pytest.mark.parametrize("room", ["head/main", "head/real", "head/sampler", "vlm", "vlm/tokens", "image/", "data/"])
def test_agrees(checks, room):
    own = [check for check in checks if check.case.startswith(room)]
    assert len(own) >= 3
    assert [check for check in own if check.status in ("fail", "warn")] == []


@pytest.mark.slow
def test_limits_are_the_promised_ones(checks):
    limits = {check.quantity: check.limit for check in checks}
    assert limits["out.fixed_r1"] == 2e-5
    assert limits["out.fixed_r12"] == pytest.approx(2e-5 * 1.4873 * (12 / 16) ** 0.5, rel=1e-3)
    assert limits["mid.hidden_states.5"] == 1e-4
    assert limits["r12 gradients of 80 parameters (relative)"] == 1e-4
    assert limits["whole path"] == 4e-4
    assert limits["normalised actions"] == 1e-6


def test_command_line(tmp_path):
    subset = tmp_path / "golden"
    (subset / "image").mkdir(parents=True)
    (subset / "image" / "pictures.npz").symlink_to(GOLDEN / "image" / "golden_image.npz")
    result = CliRunner().invoke(app, ["--golden", str(subset), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["counts"]["fail"] == 0
    assert {"case", "quantity", "status", "difference", "limit", "note"} == set(document["checks"][0])

    (subset / "image" / "broken.npz").write_bytes(b"no archive")
    result = CliRunner().invoke(app, ["--golden", str(subset)])
    assert result.exit_code == 1
    assert "FAIL" in result.output
