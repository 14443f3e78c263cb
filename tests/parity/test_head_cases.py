"""`rdvla doctor --golden` on head cases of other sizes and layer choices, written by a plain second implementation."""

import json

import published_head
import pytest
from safetensors.torch import load_file, save_file

from rdvla.doctor.golden import run_golden
from rdvla.errors import ConfigError

BASE = {
    "hidden_dim": 24,
    "num_heads": 2,
    "action_chunk_len": 4,
    "action_dim": 3,
    "mean_recurrence": 5,
    "backprop_depth": 3,
}
LAYERS = {
    "released_kind": {"prelude_vlm_layers": [1], "recurrent_vlm_layers": [2, 2], "coda_vlm_layers": [2]},
    "several_preludes": {"prelude_vlm_layers": [0, 3, 1], "recurrent_vlm_layers": [2], "coda_vlm_layers": [1, 3]},
    "two_different_recurrent": {"prelude_vlm_layers": [1], "recurrent_vlm_layers": [0, 3], "coda_vlm_layers": [2]},
    "no_prelude_no_coda": {"prelude_vlm_layers": [], "recurrent_vlm_layers": [1, 2], "coda_vlm_layers": []},
}


def run(directory):
    return [check for case in run_golden(directory) for check in case]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("seed", [0, 7])
def test_agrees_with_the_plain_implementation(tmp_path, kind, seed):
    (tmp_path / "head").mkdir()
    published_head.write_case(tmp_path / "head", "any_name", BASE | LAYERS[kind], seed=seed)
    checks = run(tmp_path)
    assert [check for check in checks if check.status != "pass"] == []
    quantities = " ".join(check.quantity for check in checks)
    for expected in ("mid.states", "fixed_r9", "fixed_default", "kl_b2 iterations", "kl_b2 metric", "r9 gradients"):
        assert expected in quantities


def test_other_sizes(tmp_path):
    (tmp_path / "head").mkdir()
    sizes = {"hidden_dim": 48, "num_heads": 6, "action_chunk_len": 5, "action_dim": 6, "rms_norm_eps": 1e-5}
    config = BASE | LAYERS["released_kind"] | sizes | {"rope_base": 500.0, "_type": "Other"}
    published_head.write_case(tmp_path / "head", "wide", config, seed=3, state_dim=11, tasks=9, latents=2, batch=3)
    assert [check for check in run(tmp_path) if check.status != "pass"] == []


class TestFailures:
    @pytest.fixture
    def case(self, tmp_path):
        (tmp_path / "head").mkdir()
        published_head.write_case(tmp_path / "head", "case", BASE | LAYERS["released_kind"], seed=1)
        return tmp_path

    def test_a_difference_of_1e_4_fails(self, case):
        path = case / "head" / "case.io.safetensors"
        io = load_file(path)
        io["out.fixed_r3"][0, 0, 0] += 1.4e-4
        save_file(io, path)
        assert [check.quantity for check in run(case) if check.status == "fail"] == ["out.fixed_r3"]

    def test_a_wrong_gradient_fails(self, case):
        path = case / "head" / "case.grads.safetensors"
        gradients = load_file(path)
        gradients["r9.grad.model.adapter.weight"] *= 1.001
        save_file(gradients, path)
        failed = [check for check in run(case) if check.status == "fail"]
        assert [check.quantity for check in failed] == ["r9 gradients of 80 parameters (relative)"]
        assert "adapter.weight" in failed[0].note

    def test_another_number_of_iterations_fails(self, case):
        path = case / "head" / "case.json"
        document = json.loads(path.read_text())
        document["kl"]["b2"]["actual_iter"] += 1
        path.write_text(json.dumps(document))
        assert [check.quantity for check in run(case) if check.status == "fail"] == ["kl_b2 iterations"]

    def test_a_missing_weight_fails_with_its_name(self, case):
        path = case / "head" / "case.weights.safetensors"
        weights = load_file(path)
        del weights["head.model.coda.0.gate"]
        save_file(weights, path)
        (check,) = run(case)
        assert check.status == "fail"
        assert "blocks.0.gate" in check.note

    def test_values_that_nothing_compares_are_mentioned(self, case):
        path = case / "head" / "case.io.safetensors"
        save_file(load_file(path) | {"out.surprise": load_file(path)["in.S0"]}, path)
        assert [check.note for check in run(case) if check.status == "warn"] == ["1: out.surprise"]

    def test_a_truncated_file_fails_and_the_rest_runs(self, case):
        published_head.write_case(case / "head", "good", BASE | LAYERS["no_prelude_no_coda"], seed=2)
        path = case / "head" / "case.io.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        checks = run(case)
        assert [check.case for check in checks if check.status == "fail"] == ["head/case"]
        assert sum(check.case.startswith("head/good") for check in checks) > 8

    def test_an_empty_directory_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError, match="none of head"):
            run(tmp_path)
        with pytest.raises(ConfigError, match="no directory"):
            run(tmp_path / "absent")
