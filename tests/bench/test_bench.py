"""`rdvla bench` reports times only of what computes the same, and its floors are arithmetic."""

import json
from functools import partial
from pathlib import Path

import bench_fakes as fakes
import pytest
import torch
from typer.testing import CliRunner

from rdvla.bench import measure as measuring
from rdvla.bench import sections, server, simulator, suite
from rdvla.bench.machine import Machine, PeakMemory, Work, floor
from rdvla.bench.measure import OURS, PUBLISHED, Case, InexactError, Row, Variant, per_iteration
from rdvla.bench.networks import contexts_of, random_head, random_hidden, random_network, scratchpads
from rdvla.bench.plot import page
from rdvla.bench.suite import Plan
from rdvla.bench.text import format_result
from rdvla.cli.main import app
from rdvla.envs.libero.env import SETTLING_STEPS
from rdvla.envs.toy import ToyEnv
from rdvla.errors import CheckpointError, ConfigError, RDVLAError, ServeError, StorageError
from rdvla.model import recorded
from rdvla.policy import PolicyMetadata
from rdvla.stops import StopRule


def test_a_client_that_cannot_connect_ends_the_measurement_of_throughput(monkeypatch):
    """The others would wait for it."""
    calls = iter(range(3))

    def connect(_):
        if next(calls) == 1:
            raise ServeError("the server is full.")
        return RemoteFake()

    monkeypatch.setattr(server, "RemotePolicy", connect)
    with pytest.raises(ServeError, match="full"):
        server._ask_from_threads("ws://nowhere", 3, 0.1, StopRule.fixed(1))


class RemoteFake:
    metadata = PolicyMetadata("fake", ("primary",), 8, 7, 8, {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def infer(self, *_):
        pass


MACHINE = Machine(bytes_per_second=4e9, flops_per_second=1e12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fakes.save_checkpoint(tmp_path_factory.mktemp("bench") / "policy")


@pytest.fixture(scope="module", autouse=True)
def small_probe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite.Machine, "measure", partial(Machine.measure, megabytes=1, side=64, repeats=1))
        yield


@pytest.fixture(scope="module")
def result(checkpoint):
    plan = Plan(
        checkpoint,
        released=fakes.RELEASED_KIND,
        full=True,
        repeats=1,
        depths=(1, 3),
        batches=(1, 2),
        memory_depths=(1, 8, 24),
    )
    return suite.run(plan)


class TestWholeRun:
    def test_every_exact_variant_has_a_time_and_agrees(self, result):
        timed = [row for row in result.rows if PUBLISHED in row.values and row.differences]
        sections = {row.section.partition(",")[0] for row in timed}
        assert sections == {"head", "decision", "batches", "training"}
        assert all(row.median(OURS) > 0 for row in timed)
        assert all(row.differences[OURS] <= 1e-4 for row in timed)

    def test_released_kind_and_checkpoint_are_both_there(self, result):
        titles = {row.section for row in result.rows}
        for section in ("head", "decision", "memory"):
            assert {f"{section}, released size", f"{section}, policy"} <= titles

    def test_low_precision_columns_say_how_far_off_they_are(self, result):
        row = next(row for row in result.rows if row.name == "r = 3")
        assert set(row.values) - {"int8"} == {PUBLISHED, "float32", "bfloat16"}  # int8 needs its instructions
        assert row.differences["bfloat16"] > row.differences[OURS]
        assert row.differences.keys() == row.values.keys()

    def test_memory_is_flat(self, result):
        for section in ("memory, released size", "memory, policy"):
            peaks = {row.name: row.median(OURS) for row in result.rows if row.section == section}
            scratchpad = 8 * 16 * 4 / 1e6  # the one before is still there while the next is computed
            assert peaks["decision, r = 8"] == peaks["decision, r = 24"]
            assert peaks["decision, r = 8"] - peaks["decision, r = 1"] < 1.01 * scratchpad
            assert peaks["training pass, r = 8"] == peaks["training pass, r = 24"] > peaks["training pass, r = 1"]

    def test_document(self, result, tmp_path):
        result.write(tmp_path / "bench.json")
        document = json.loads((tmp_path / "bench.json").read_text())
        assert set(document) == {"format", "machine", "repeats", "rows"}
        assert {"device", "cores", "threads", "torch", "read_gb_per_s", "float32_gflop_per_s"} <= set(
            document["machine"]
        )
        for row in document["rows"]:
            assert set(row) == {"section", "name", "unit", "floor", "variants"}
            for variant in row["variants"].values():
                assert set(variant) == {"median", "values", "ratio", "difference", "times_floor"}
                assert len(variant["values"]) == 1

    def test_table_and_figures_show_every_row(self, result):
        text, html = format_result(result), page(result)
        for row in result.rows:
            assert row.section in text
            assert row.name in text
        assert html.count("<svg") == 4
        assert "one more iteration" in html


class TestExactness:
    def test_a_perturbed_reference_stops_everything(self, monkeypatch):
        calls = []
        decider = sections.decider

        def counting(*arguments):
            run = decider(*arguments)
            return lambda: calls.append(1) or run()

        def perturbed(head):
            found = published_head(head)
            norm = "model.output_norm.weight"
            return type(found)({**found.weights, norm: found.weights[norm] * 1.001}, found.config)

        published_head = sections.published_head
        monkeypatch.setattr(sections, "decider", counting)
        monkeypatch.setattr(sections, "published_head", perturbed)
        cases = sections.head_cases("test", fakes.RELEASED_KIND, random_head(fakes.HEAD), (1, 2))
        with pytest.raises(InexactError, match=r"r = 1: float32 differs .* \(limit 2e-05\)"):
            list(measuring.measure(cases, repeats=3))
        assert len(calls) == 1

    def test_the_first_sample_of_a_batch_is_compared(self):
        wrong = Variant(lambda: torch.tensor([[1.0], [5.0]]), samples=2)
        case = Case("s", "n", "decisions/s", {PUBLISHED: Variant(lambda: torch.tensor([[1.0]])), OURS: wrong})
        assert measuring.check(case) == {PUBLISHED: 0.0, OURS: 0.0}

    def test_another_shape_is_another_result(self):
        case = Case("s", "n", "ms", {PUBLISHED: Variant(lambda: torch.zeros(2)), OURS: Variant(lambda: torch.zeros(1))})
        with pytest.raises(InexactError, match="returns"):
            measuring.check(case)

    def test_nan_is_not_equal(self):
        nan = Variant(lambda: torch.tensor([torch.nan]))
        with pytest.raises(InexactError):
            measuring.check(Case("s", "n", "ms", {PUBLISHED: Variant(lambda: torch.zeros(1)), OURS: nan}))

    def test_wrong_gradients_are_found(self, monkeypatch):
        head = sections.PublishedNetwork.forward

        def deeper(self, inputs, latents, *, n_no_grad, n_grad):
            return head(self, inputs, latents, n_no_grad=n_no_grad - 1, n_grad=n_grad + 1)

        monkeypatch.setattr(sections.PublishedNetwork, "forward", deeper)
        (case,) = sections.training_cases("test", random_network(fakes.LAPTOP_KIND))
        with pytest.raises(InexactError, match="training"):
            measuring.check(case)


class TestCompiled:
    def test_compiled_forms_are_checked_like_the_others(self, monkeypatch):
        monkeypatch.setattr(recorded, "BACKEND", "eager")
        cases = sections.decision_cases("test", random_network(fakes.LAPTOP_KIND), sections.COMPILED)
        cases += sections.head_batches("test", fakes.LAPTOP_KIND, random_head(fakes.HEAD), (2,), sections.COMPILED)
        for case in cases:
            found = measuring.check(case)
            assert set(found) == {PUBLISHED, "compiled float32", "compiled bfloat16"}
            assert found["compiled float32"] <= case.limit
            assert case.runs["compiled float32"].exact
        assert Plan(Path(), compile=True).forms(sections.LOADED) == (*sections.LOADED, *sections.COMPILED)

    def test_processor_time_is_that_of_the_processor(self):
        with pytest.raises(ConfigError, match="processor time says nothing about the device 'meta'"):
            Plan(Path(), threads=1, processor_time=True, device="meta")


class TestFloor:
    def test_known_numbers(self):
        reading, computing = Work(weights=10**6, flops=10**6, count=3), Work(weights=10, flops=2 * 10**9)
        assert reading.seconds(MACHINE) == pytest.approx(3e-3)
        assert computing.seconds(MACHINE) == pytest.approx(2e-3)
        assert floor([reading, computing], MACHINE) == pytest.approx(5e-3)

    @torch.no_grad()
    def test_an_iteration_of_the_core_by_hand(self):
        head, hidden = random_head(fakes.HEAD), random_hidden(fakes.RELEASED_KIND, 1)
        contexts = contexts_of(hidden)
        (_, core, _) = sections.head_phases(head, contexts, scratchpads(head, 1), 5, 1)
        width, actions, tokens = 16, 8, contexts[2].latents.shape[1] + contexts[2].vision.shape[1]
        matrices = 2 * (6 + 12) * width**2 + 2 * width**2
        norms = 2 * 3 * width + 2 * width + 1
        attention = 2 * (4 * actions * actions * width + 4 * actions * tokens * width)
        assert core == Work(matrices + norms, 2 * actions * matrices + attention, 5)

    def test_tables_that_are_looked_up_are_not_read(self):
        table, linear = torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 2, bias=False)
        assert Work.of(lambda: linear(table(torch.tensor([3, 5])))) == Work(8, 2 * 2 * 4 * 2)

    def test_machine_is_measured(self):
        machine = Machine.measure(megabytes=1, side=32, repeats=1)
        assert machine.bytes_per_second > 0
        assert machine.flops_per_second > 0
        assert machine.best(MACHINE).flops_per_second >= MACHINE.flops_per_second


class TestRows:
    def test_times(self):
        row = Row("s", "n", "ms", {PUBLISHED: [8.0, 9.0, 100.0], OURS: [3.0, 3.0, 4.0]}, floor=1.5)
        assert (row.median(PUBLISHED), row.ratio(OURS), row.distance(OURS)) == (9.0, 3.0, 2.0)

    def test_rates(self):
        row = Row("s", "n", "samples/s", {PUBLISHED: [10.0], OURS: [25.0]}, floor=50.0)
        assert (row.ratio(OURS), row.distance(OURS)) == (2.5, 2.0)

    def test_converted_from_seconds(self):
        runs = {PUBLISHED: Variant(lambda: torch.zeros(1)), OURS: Variant(lambda: torch.zeros(1), samples=4)}
        case = Case("s", "n", "decisions/s", runs, phases=(Work(10**6, 0),))
        row = measuring.Timed(case, {PUBLISHED: [0.5], OURS: [0.5]}, {}).row(MACHINE)
        assert (row.values, row.floor) == ({PUBLISHED: [2.0], OURS: [8.0]}, pytest.approx(4000.0))

    def test_one_more_iteration(self):
        shallow = Row("s", "r = 2", "ms", {OURS: [5.0, 6.0]})
        deep = Row("s", "r = 12", "ms", {OURS: [25.0, 16.0]})
        assert per_iteration(shallow, deep, 10, None).values == {OURS: [2.0, 1.0]}


class TestMemory:
    def test_counts_what_is_alive_at_once(self):
        given = torch.zeros(1000)
        with PeakMemory() as memory:
            for _ in range(3):
                kept = given + 1
                half = kept[:500]
                del kept, half
        assert memory.peak == 4000

    def test_views_and_changes_of_given_tensors_are_free(self):
        given = torch.zeros(1000)
        with PeakMemory() as memory:
            given[:10].add_(1)
            given.view(10, 100).t()
        assert memory.peak == 0


class TestSimulatorCase:
    @pytest.mark.parametrize(
        ("place", "first_views"), [(simulator.LIBERO, SETTLING_STEPS), (simulator.CALVIN, 1)], ids=["libero", "calvin"]
    )
    def test_the_same_episode_with_fewer_pictures(self, place, first_views):
        counts = []

        class Counting(ToyEnv):
            def observe(self):
                counts.append(1)
                return super().observe()

        cases = simulator.simulator_cases("toy", place, Counting(0), fakes.Reacher(), horizons=("4",))
        (timed,) = measuring.measure(cases, repeats=1)
        assert timed.differences == {PUBLISHED: 0.0, OURS: 0.0}
        counts.clear()
        steps = int(cases[0].runs[OURS].call()[1])
        assert len(counts) == -(-steps // 4)
        counts.clear()
        cases[0].runs[PUBLISHED].call()
        assert len(counts) == first_views + steps
        assert cases[0].unit.endswith("/min")


class TestCommand:
    def invoke(self, *arguments):
        return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=True)

    def test_ends_with_where_everything_is(self, checkpoint, tmp_path):
        numbers, figures = tmp_path / "bench.json", tmp_path / "bench.html"
        done = self.invoke(
            "--checkpoint", checkpoint, "--quick", "--only", "head,memory", "--json", numbers, "--plot", figures
        )
        assert done.exit_code == 0, done.output
        assert f"Every number: {numbers}\nFigures: {figures}" in done.output
        assert {row["section"] for row in json.loads(numbers.read_text())["rows"]} == {
            "head, policy",
            "memory, policy",
        }
        assert "<svg" in figures.read_text()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (["--only", "heads"], ConfigError, "unknown section 'heads'. Did you mean 'head'"),
            (["--repeats", "0"], ConfigError, "repeats must be at least 1, found 0"),
            (["--threads", "0"], ConfigError, "threads must be at least 1, found 0"),
            (["--processor-time"], ConfigError, "threads must be 1, found None"),
            (["--device", "gpu"], ConfigError, "device 'gpu' cannot be used here"),
            (["--checkpoint", "nowhere"], CheckpointError, "nowhere"),
            (["--json", "nowhere/bench.json"], StorageError, "no directory 'nowhere'"),
        ],
    )
    def test_bad_input(self, checkpoint, arguments, error, message):
        given = ["--checkpoint", checkpoint] if "--checkpoint" not in arguments else []
        done = self.invoke(*given, "--quick", *arguments)
        assert isinstance(done.exception, RDVLAError)
        assert isinstance(done.exception, error)
        assert message in str(done.exception)

    def test_a_file_that_cannot_be_written(self, result, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError, match="folder"):
            result.write(tmp_path / "folder")
