"""The sections beside the main benchmark: small inputs, the command line, and what the numbers must obey."""

import json

import bench_fakes as fakes
import numpy as np
import pytest
from typer.testing import CliRunner

from rdvla.bench import saving, training_memory
from rdvla.bench.images import measure_images
from rdvla.bench.table import Table
from rdvla.cli.main import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fakes.save_checkpoint(tmp_path_factory.mktemp("bench_sections") / "policy")


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


def column(table: Table, name: str) -> list:
    return [row[table.columns.index(name)] for row in table.rows]


def test_the_image_path_differs_from_pil_alone():
    paths, augmentations = measure_images(3)
    assert column(paths, "values that differ")[0] > 0
    assert all(milliseconds > 0 for table in (paths, augmentations) for milliseconds in column(table, "ours"))


def test_recomputed_activations_need_less_memory(monkeypatch):
    ways = [way for way in training_memory.WAYS if way[0] == "trained"]
    monkeypatch.setattr(training_memory, "WAYS", ways)
    table = training_memory.measure_memory(fakes.RELEASED_KIND, batch=2, depth=2)
    most = dict(zip([row[:3] for row in table.rows], column(table, "most in a step"), strict=True))
    assert most["trained", "mixed", "computed again"] < most["trained", "mixed", "kept"]
    assert most["trained", "bfloat16", "kept"] < most["trained", "mixed", "kept"]
    assert len(most) == 4


def test_every_way_is_compared_with_the_plain_one(checkpoint, monkeypatch):
    monkeypatch.setattr(saving, "PRECISIONS", ("float32", "bfloat16"))
    table = saving.measure_saving(checkpoint, "toy", count=2, repeats=1)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["plain"]["mean change"] == rows["plain"]["stops elsewhere"] == 0
    assert rows["fixed 12"]["iterations"] == 12
    assert rows["another scratchpad"]["mean change"] > 0
    assert all(np.isfinite(list(row.values())[1:]).all() for row in rows.values())


def test_numbers_go_to_a_file(tmp_path):
    done = invoke("images", "--repeats", 1, "--json", tmp_path / "images.json")
    assert done.exit_code == 0
    written = json.loads((tmp_path / "images.json").read_text())
    assert [table["title"].split(",")[0] for table in written["result"]] == ["One image", "Augmentation of one image"]
    assert written["machine"]


def test_the_loader_on_a_dataset_of_its_own(tmp_path):
    done = invoke("loader", "--samples", 16, "--size", 32)
    assert done.exit_code == 0
    assert "no cache, decoded on demand" in done.output


@pytest.mark.slow
def test_the_server_through_two_kills(checkpoint):
    done = invoke("server", "restart", "--checkpoint", checkpoint, "--suite", "toy", "--depth", 2)
    assert done.exit_code == 0, done.output
    assert "same_actions               True" in done.output


@pytest.mark.slow
def test_the_server_under_load_answers_everything(checkpoint, tmp_path):
    path = tmp_path / "soak.json"
    invoke("server", "soak", "--checkpoint", checkpoint, "--minutes", 0.03, "--depth", 1, "--json", path)
    result = json.loads(path.read_text())["result"]
    assert result["requests"] >= 2
    assert result["errors"] == result["reconnects"] == 0
    invoke("server", "throughput", "--checkpoint", checkpoint, "--seconds", 0.5, "--clients", 2, "--json", path)
    assert json.loads(path.read_text())["result"]["2_clients"]["requests_per_s"] > 0
