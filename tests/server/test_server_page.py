"""The live page: what it may do, and what it does in a real browser."""

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import browser_page, until

from patience import PATIENCE_S, kept_port
from rdvla.policy import Ask
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.server.server import PolicyServer
from rdvla.stops import StopRule
from serve_fakes import QUICK, FakePolicy, observation, open_socket

WEB = QUICK.model_copy(update={"web": True})


@contextmanager
def asking(server: PolicyServer, stop: StopRule | None = None, instruction: str = "pick up the bowl") -> Iterator[None]:
    """Ask for decisions all the time, as a robot would."""
    over = threading.Event()

    def ask() -> None:
        with RemotePolicy(server.url) as policy:
            number = 0
            while not over.wait(0.05):
                number += 1
                policy.infer(observation(number, side=64, instruction=instruction), Ask(stop))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def address(server: PolicyServer) -> str:
    return server.url.replace("ws", "http", 1)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    with serving(FakePolicy(), WEB) as server, urllib.request.urlopen(address(server), timeout=PATIENCE_S) as answer:
        body, headers = answer.read().decode(), answer.headers
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", body)
    assert not re.findall(r"https?://", body)
    assert "/*{" not in body, "a part of the page was not filled in"
    assert len(body) < 40_000
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_without_web_there_is_no_page_and_no_feed() -> None:
    with serving(FakePolicy(), QUICK) as server:
        connection = open_socket(server.url + "/live")
        assert isinstance(connection.recv(timeout=PATIENCE_S), bytes)  # an ordinary connection for requests
        connection.close()


def test_wrong_wishes_are_explained_and_change_nothing() -> None:
    with serving(FakePolicy(), WEB) as server:
        connection = open_socket(server.url + "/live")
        hello = json.loads(connection.recv(timeout=PATIENCE_S))
        assert hello["hello"]["cameras"] == ["primary", "wrist"]
        assert hello["controls"]["mode"] == "client"
        for wish, match in [
            ("{", "Expecting property"),
            ("[]", "must be a JSON object"),
            ('{"mode": "fast"}', "'mode' = 'fast'"),
            ('{"depth": 65}', "'depth' = 65"),
            ('{"dept": 3}', "Did you mean 'depth'"),
            ('{"instruction": "' + "x" * 1001 + '"}', "instruction"),
        ]:
            connection.send(wish)
            while "error" not in (answer := json.loads(connection.recv(timeout=PATIENCE_S))):
                pass
            assert match in answer["error"]
        connection.send('{"depth": 3}')
        while "controls" not in (answer := json.loads(connection.recv(timeout=PATIENCE_S))):
            pass
        assert answer["controls"] == hello["controls"] | {"depth": 3}
        connection.close()


def test_the_page_cannot_ask_for_more_than_the_server_allows() -> None:
    with serving(FakePolicy(), WEB.model_copy(update={"max_depth": 9})) as server:
        connection = open_socket(server.url + "/live")
        hello = json.loads(connection.recv(timeout=PATIENCE_S))
        assert (hello["hello"]["max_depth"], hello["controls"]["depth"]) == (9, 9)
        connection.send('{"mode": "depth", "depth": 10}')
        while "error" not in (answer := json.loads(connection.recv(timeout=PATIENCE_S))):
            pass
        assert "at most 9 iterations" in answer["error"]
        assert answer["controls"] == hello["controls"]
        connection.close()


def test_a_late_viewer_gets_the_history_and_the_newest_images() -> None:
    with serving(FakePolicy(), WEB) as server, RemotePolicy(server.url) as policy:
        for number in range(300):
            policy.infer(observation(number, side=16))
        connection = open_socket(server.url + "/live")
        connection.recv(timeout=PATIENCE_S)
        news = json.loads(connection.recv(timeout=PATIENCE_S))
        assert [decision["number"] for decision in news["decisions"]] == list(range(61, 301))
        assert all(image.startswith("data:image/jpeg;base64,") for image in news["images"].values())
        connection.close()


def test_only_so_many_viewers() -> None:
    with serving(FakePolicy(), WEB) as server:
        viewers = [open_socket(server.url + "/live") for _ in range(9)]
        for viewer in viewers[:8]:
            assert "hello" in json.loads(viewer.recv(timeout=PATIENCE_S))
        from websockets.exceptions import ConnectionClosed

        with pytest.raises(ConnectionClosed, match="1013"):
            viewers[8].recv(timeout=PATIENCE_S)
        for viewer in viewers:
            viewer.close()


@pytest.mark.slow
def test_watching_and_steering_in_a_browser(tmp_path: Path) -> None:
    policy = FakePolicy()
    rule = StopRule("action_l2", max_depth=9)
    with serving(policy, WEB) as server, browser_page() as page, asking(server, rule):
        page.goto(address(server))
        until(page, "document.querySelector('#iterations').textContent === '9'")
        assert page.inner_text("#instruction") == "pick up the bowl"
        assert page.inner_text("#connection") == "connected"
        assert page.locator("#cameras img").count() == 2
        assert page.evaluate("document.querySelector('#camera-primary').naturalWidth") == 64
        assert "action_l2" in page.inner_text("#rule-used")
        assert "still moves the answer" in page.inner_text("#convergence-note")

        page.locator("label", has_text="Depth").first.click()
        page.locator("#depth").fill("5")
        until(page, "document.querySelector('#iterations').textContent === '5'")
        assert page.inner_text("#rule-used") == "fixed(5)"

        page.locator("label", has_text="Adaptive").click()
        page.locator("#rule").select_option("latent")
        until(page, "document.querySelector('#rule-used').textContent.startsWith('latent')")

        page.locator("#budget").fill("5")  # 3 ms; the fake policy takes an iteration per millisecond
        until(page, "document.querySelector('#iterations').textContent === '3'")

        page.locator("#words").fill("<img src=x onerror=document.title=1> stack the plates")
        page.get_by_text("Say it").click()
        until(page, "document.querySelector('#instruction').textContent.includes('stack the plates')")
        assert policy.seen[-1].instruction == "<img src=x onerror=document.title=1> stack the plates"
        assert page.title() == "rdvla live"

        page.locator("#words").fill("   ")  # nothing but spaces: the robot's own sentence
        page.get_by_text("Say it").click()
        until(page, "document.querySelector('#instruction').textContent === 'pick up the bowl'")

        page.evaluate("document.querySelector('#depth').max = 999")
        page.locator("#depth").fill("500")
        until(page, "document.querySelector('#error').textContent !== ''")
        page.wait_for_timeout(300)  # the refusal stays readable although decisions go on coming
        assert "'depth' = 500" in page.inner_text("#error")
        assert page.inner_text("#depth-value") == "5"

        page.locator("label", has_text="As asked").click()
        until(page, "document.querySelector('#iterations').textContent === '9'")
        page.screenshot(path=tmp_path / "page.png")


@pytest.mark.slow
def test_the_page_comes_back_after_the_server_did() -> None:
    with kept_port() as port, browser_page(tolerated="ERR_CONNECTION_REFUSED") as page:  # it knocks at a closed door
        config = WEB.model_copy(update={"port": port})
        with serving(FakePolicy(), config) as server:
            page.goto(address(server))
            until(page, "document.querySelector('#connection').textContent === 'connected'")
        until(page, "document.querySelector('#connection').textContent === 'reconnecting'")
        with serving(FakePolicy(), config) as server, asking(server):
            until(page, "document.querySelector('#iterations').textContent === '12'")
