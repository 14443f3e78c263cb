"""A number that a head knows about its decision reaches reply, record, report and live page, named nowhere between."""

import dataclasses
import json
import math

import numpy as np
import pytest
from eval_fakes import DOUBT, DoubtingLine, suites

from patience import PATIENCE_S
from rdvla.errors import ServeError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import read_records, to_line
from rdvla.eval.runner import evaluate
from rdvla.eval.summary import summarise_group
from rdvla.policy import PLAIN, PolicyMetadata
from rdvla.report.load import load_runs
from rdvla.report.page import write_report
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.types import ActionChunk
from rdvla.wire.codec import decode, encode
from rdvla.wire.protocol import chunk_from_reply, reply_message
from serve_fakes import QUICK, FakePolicy, observation, open_socket


class Doubting(FakePolicy):
    def infer(self, observation, ask=PLAIN):
        chunk = super().infer(observation, ask)
        return dataclasses.replace(chunk, signals={"doubt": DOUBT, "odd": math.nan})


CHUNK = ActionChunk(
    actions=np.arange(6, dtype=np.float32).reshape(3, 2),
    num_recurrences=4,
    convergence=(0.5, 0.25),
    n_action_steps=2,
    timings={"total": 1.5},
    out_of_time=True,
    signals={"doubt": 0.2, "codas": 3.0},
    opening=np.float32([0.25, 0.5, 1.0]),
    trace={"latent": np.float32([np.nan, 0.25])},
)


def test_a_chunk_survives_the_wire():
    carried = decode(encode(CHUNK.to_wire()))
    back = ActionChunk.from_wire(carried)
    np.testing.assert_array_equal(back.actions, CHUNK.actions)
    for field in dataclasses.fields(ActionChunk):
        if field.name == "trace":
            np.testing.assert_array_equal(back.trace["latent"], CHUNK.trace["latent"])
        elif field.name == "opening":
            np.testing.assert_array_equal(back.opening, CHUNK.opening)
        elif field.name != "actions":
            assert getattr(back, field.name) == getattr(CHUNK, field.name), field.name


def test_a_reply_without_signals_has_the_keys_it_always_had():
    chunk = dataclasses.replace(CHUNK, signals={}, opening=None, trace={})
    reply = reply_message(chunk, n_action_steps=2, policy_ms=1.0, server_timing={"infer_ms": 2.0}, budget_ms=None)
    assert list(reply) == [
        "actions", "num_recurrences", "convergence", "n_action_steps", "budget_used", "out_of_time", "missing_cameras",
        "policy_timing", "server_timing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"signals": 3},
        {"signals": {"doubt": "much"}},
        {"convergence": 1},
        {"opening": [0.5]},
        {"num_recurrences": -1},
        {"policy_timing": {"core": float("nan")}},
        {"server_timing": {"infer_ms": -1.0}},
    ],
)
def test_malformed_replies_are_refused(wrong):
    metadata = PolicyMetadata("x", (), 1, 2, 3, {})
    with pytest.raises(ServeError, match="malformed"):
        chunk_from_reply({**CHUNK.to_wire(), **wrong}, metadata)


def test_from_the_head_to_client_and_live_page():
    config = QUICK.model_copy(update={"web": True})
    with serving(Doubting(), config) as server, RemotePolicy(server.url) as remote:
        viewer = open_socket(server.url + "/live")
        assert "hello" in json.loads(viewer.recv(timeout=PATIENCE_S))
        chunk = remote.infer(observation())
        shown = []
        while not shown:
            shown = json.loads(viewer.recv(timeout=PATIENCE_S)).get("decisions", [])
        viewer.close()
    assert chunk.signals["doubt"] == DOUBT
    assert math.isnan(chunk.signals["odd"])
    assert shown[-1]["signals"] == {"doubt": DOUBT, "odd": None}


def test_from_the_head_to_record_and_report(tmp_path):
    config = EvalConfig(policy="line", suites=("line",), task_ids=(0,), init_states=(0, 1), horizons=("2",))
    evaluate(config, suites=suites(), policy_factory=DoubtingLine, output=tmp_path / "run")
    first, second = read_records(tmp_path / "run")
    decisions = len(first.iterations)
    assert decisions > 1
    doubt, odd = (0.1235, *[None] * (decisions - 1)), (None,) * decisions
    calm = (None, *[0.0] * (decisions - 1))  # it plans the same again
    assert first.signals == {"doubt": doubt, "odd": odd, "disagreement": calm}
    assert summarise_group([first, second]).signals == {"doubt": pytest.approx(0.1235), "disagreement": 0}
    assert "signals" not in json.loads(to_line(first.model_copy(update={"signals": {}})))
    write_report(load_runs([tmp_path / "run"]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '<th class="n">doubt</th>' in page
    assert '<td class="n">0.123</td>' in page
    assert page.count("disagreement: how far a decision is from what the one before still planned") == 1
