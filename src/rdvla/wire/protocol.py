"""What the messages say: options of a request, the reply, the metadata, and errors as text.

An error is one text frame `code: explanation`. After `busy`, `rate_limit` and `deadline` the connection stays
open and the next request is welcome; after any other code it is closed with 1011, as openpi's server does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rdvla.errors import ConfigError, ServeError, suggest
from rdvla.policy import PLAIN, Ask, PolicyMetadata
from rdvla.stops import StopRule
from rdvla.types import ActionChunk

API_KEY_VARIABLE = "RDVLA_API_KEY"
CLOSE_ERROR = 1011
MAX_SEED = 2**63 - 1
MAX_MS = 3_600_000.0
STEERED = "steered"
"""Key of a reply that answers what a person at the live page wanted."""
MAX_CARRY_BYTES = 2**20
MAX_STEP = 2**31 - 1


class RequestRefused(ServeError):  # noqa: N818 - a refusal is an answer, and each kind is named after its code
    """The server answered a request with an error; `code` says which kind."""

    code = "internal"
    keeps_connection = False


class BadRequest(RequestRefused):
    """The request itself is wrong; sending it again cannot help."""

    code = "bad_request"


class Busy(RequestRefused):
    """The queue is full; try again a moment later."""

    code = "busy"
    keeps_connection = True


class RateLimited(RequestRefused):
    """This connection asks more often than the server allows."""

    code = "rate_limit"
    keeps_connection = True


class DeadlineMissed(RequestRefused):
    """The answer would have been late, so it was not sent."""

    code = "deadline"
    keeps_connection = True


class ShuttingDown(RequestRefused):
    """The server is stopping and takes no new requests."""

    code = "shutting_down"


_REFUSALS: Mapping[str, type[RequestRefused]] = {
    kind.code: kind for kind in (RequestRefused, BadRequest, Busy, RateLimited, DeadlineMissed, ShuttingDown)
}


def error_text(refusal: RequestRefused) -> str:
    """Return the text frame that says `refusal`."""
    return f"{refusal.code}: {refusal}"


def refusal_from_text(text: str) -> RequestRefused:
    """Return the refusal that a server's text frame means; an unknown text is an internal error of the server."""
    code, separator, explanation = text.partition(": ")
    if separator and code in _REFUSALS:
        return _REFUSALS[code](explanation)
    return RequestRefused(text)


@dataclass(frozen=True)
class RequestOptions:
    """How a request wants to be answered.

    Attributes:
        ask: how the policy should decide; without a rule, the server's default is taken.
        deadline_ms: an answer later than this after arrival is not sent; None takes the server's default.
        steered: whether a person at the server's live page has changed the request; no part of a message.
    """

    ask: Ask = PLAIN
    deadline_ms: float | None = None
    steered: bool = False


def read_options(message: Mapping[str, Any], *, max_depth: int) -> RequestOptions:
    """Read the fields of `Ask`, `depth` and `deadline_ms` of a request; all may be absent.

    `depth` alone is a fixed number of iterations. `stop` is the name of a rule, or a map of `StopRule`'s fields;
    with a name, `depth` is its largest number of iterations.

    Raises:
        BadRequest: a value of the wrong type or range, an unknown rule, more than `max_depth` iterations.
    """
    try:
        rule = _stop_rule(message.get("stop"), _whole(message, "depth", 1, max_depth))
        if rule is not None and rule.max_depth > max_depth:
            raise BadRequest(f"max_depth is {rule.max_depth}; this server allows at most {max_depth} iterations.")
        ask = Ask(
            stop=rule,
            seed=_whole(message, "seed", 0, MAX_SEED),
            budget_ms=_milliseconds(message, "budget_ms"),
            trace_depth=_whole(message, "trace_depth", 2, max_depth),
            warm_start=message.get("warm_start", "noise"),
            carry=_carry(message.get("carry")),
            step=_whole(message, "step", 0, MAX_STEP),
        )
    except ConfigError as error:
        raise BadRequest(str(error)) from None
    return RequestOptions(ask, deadline_ms=_milliseconds(message, "deadline_ms"))


def write_options(options: RequestOptions) -> dict[str, Any]:
    """Return the message keys that say `options`."""
    ask = options.ask
    values: dict[str, Any] = {
        "seed": ask.seed,
        "budget_ms": ask.budget_ms,
        "stop": None if ask.stop is None else _fields(ask.stop),
        "trace_depth": ask.trace_depth,
        "warm_start": None if ask.warm_start == "noise" else ask.warm_start,
        "carry": ask.carry,
        "step": ask.step,
        "deadline_ms": options.deadline_ms,
    }
    return {key: value for key, value in values.items() if value is not None}


def _fields(rule: StopRule) -> dict[str, Any]:
    return {name: value for name, value in asdict(rule).items() if value is not None}


def _stop_rule(stop: Any, depth: int | None) -> StopRule | None:
    if stop is None:
        return None if depth is None else StopRule.fixed(depth)
    fields = {"name": stop} if isinstance(stop, str) else stop
    if not isinstance(fields, dict):
        raise ConfigError(f"'stop' must be a rule's name or a map of its fields, found {type(stop).__name__}.")
    known = StopRule.__dataclass_fields__
    for key in fields:
        if not isinstance(key, str) or key not in known:
            raise ConfigError(f"unknown key {str(key)[:40]!r} in 'stop'.{suggest(str(key)[:40], known)}")
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in fields.items()}
    return StopRule(**values | ({} if depth is None else {"max_depth": depth}))


def _carry(blob: Any) -> bytes | None:
    if blob is not None and (not isinstance(blob, bytes) or len(blob) > MAX_CARRY_BYTES):
        found = f"{len(blob)} bytes" if isinstance(blob, bytes) else type(blob).__name__
        raise BadRequest(f"'carry' must be an earlier reply's, at most {MAX_CARRY_BYTES} bytes, found {found}.")
    return blob


def _whole(message: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= int(value) <= high:
        raise BadRequest(f"'{key}' must be a whole number in {low}..{high}, found {value!r:.40}.")
    return int(value)


def _milliseconds(message: Mapping[str, Any], key: str) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise BadRequest(f"'{key}' must be a number of milliseconds, found {type(value).__name__}.")
    if not 0 < float(value) <= MAX_MS:
        raise BadRequest(f"'{key}' must be in 0..{MAX_MS:.0f} milliseconds, above 0, found {float(value)!r}.")
    return float(value)


def metadata_message(metadata: PolicyMetadata, *, server_version: str) -> dict[str, Any]:
    """Return the first message of a connection: what the policy needs and returns, as plain values.

    `extra` is the policy's own; a network says there, for one, its `gripper` convention, under `action_reach` how large
    each number of its actions was in training, and under `images` the size it works at (images of any size are
    accepted). The server adds `fingerprint`, which tells whether two answers came from the same checkpoint, default
    rule and version.
    """
    return {
        "name": metadata.name,
        "cameras": list(metadata.cameras),
        "state_dim": metadata.state_dim,
        "action_dim": metadata.action_dim,
        "chunk_size": metadata.chunk_size,
        "extra": dict(metadata.extra),
        "server": f"rdvla {server_version}",
    }


def metadata_from_message(message: Mapping[str, Any]) -> PolicyMetadata:
    """Read a server's first message.

    Raises:
        ServeError: the server does not say what its policy needs (a stock openpi server may not).
    """
    try:
        return PolicyMetadata(
            name=str(message["name"]),
            cameras=tuple(str(camera) for camera in message["cameras"]),
            state_dim=int(message["state_dim"]),
            action_dim=int(message["action_dim"]),
            chunk_size=int(message["chunk_size"]),
            extra=dict(message.get("extra", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServeError(
            f"the server's metadata does not describe its policy ({error!r}); is it an rdvla server?"
        ) from None


def reply_message(
    chunk: ActionChunk,
    *,
    n_action_steps: int,
    policy_ms: float,
    server_timing: Mapping[str, float],
    budget_ms: float | None,
    missing_cameras: tuple[str, ...] = (),
    steered: bool = False,
) -> dict[str, Any]:
    """Return the reply to a request. `actions` is its only array; everything else is plain numbers and lists.

    Args:
        chunk: what the policy decided.
        n_action_steps: the suggested execution horizon, in 1..chunk_size.
        policy_ms: how long the policy took.
        server_timing: milliseconds by stage, as the server saw them.
        budget_ms: the budget of the request, of which the reply says the fraction used (None without a budget).
        missing_cameras: cameras the policy saw as black because the request did not have them.
        steered: whether it answers what a person at the live page wanted instead of the request.
    """
    decided = chunk.to_wire()
    return {
        **{key: decided.pop(key) for key in ("actions", "num_recurrences", "convergence")},
        "n_action_steps": n_action_steps,
        "budget_used": None if budget_ms is None else policy_ms / budget_ms,
        "out_of_time": decided.pop("out_of_time"),
        "missing_cameras": list(missing_cameras),
        "policy_timing": {**decided.pop("policy_timing"), "infer_ms": policy_ms},
        "server_timing": dict(server_timing),
        **({STEERED: True} if steered else {}),
        **{key: value for key, value in decided.items() if key != "n_action_steps"},
    }


def chunk_from_reply(reply: Mapping[str, Any], metadata: PolicyMetadata) -> ActionChunk:
    """Read a reply. Its timings are the policy's, plus the server's `server` (arrival to reply) and `queue`.

    Raises:
        ServeError: actions of the wrong dtype or shape, or fields of the wrong type.
    """
    actions = reply.get("actions")
    expected = (metadata.chunk_size, metadata.action_dim)
    if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.shape != expected:
        found = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        raise ServeError(f"the server's actions must be floats of shape {expected}, found {found}.")
    try:
        server = dict(reply.get("server_timing", {}))
        timings = {
            **dict(reply.get("policy_timing", {})),
            "server": server.get("infer_ms"),
            "queue": server.get("queue_ms"),
        }
        known = {name: value for name, value in timings.items() if value is not None}
        return ActionChunk.from_wire({**reply, "policy_timing": known})
    except (TypeError, ValueError) as error:
        raise ServeError(f"the server's reply is malformed: {error}.") from None
