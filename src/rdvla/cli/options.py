"""Options that several commands share: each is declared once, and read into one object.

A command names the groups that it takes as keyword-only parameters; on the command line (and for whoever calls it from
Python) their fields are options of the command itself:

    @with_options
    def eval_command(output: ..., *, stopping: StopOptions, loading: LoadOptions) -> None:
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from rdvla.cli.parsing import parse_depths, parse_names
from rdvla.errors import ConfigError
from rdvla.policy import Ask, WarmStart
from rdvla.stops import BUILT_IN, DEFAULT_MAX_DEPTH, SAFE_GATE, StopRule, choose_rule


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with every parameter that is a group of options replaced by the fields of the group.

    A group is a dataclass whose fields have a default and are annotated with a sentence for people; a bool is a flag.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: each.annotation for name, each in signature.parameters.items() if is_dataclass(each.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _options(groups[name]) if name in groups else [parameter]
    flat = signature.replace(parameters=parameters)

    @functools.wraps(command)
    def called(*args: Any, **options: Any) -> None:
        bound = flat.bind(*args, **options)
        bound.apply_defaults()
        values = bound.arguments
        for name, group in groups.items():
            values[name] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        command(**values)

    called.__signature__ = flat  # type: ignore[attr-defined]  # what inspect, and so typer, reads
    return called


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        kind, sentence = get_args(hints[each.name])
        flag = (f"--{each.name.replace('_', '-')}",) if kind is bool else ()
        annotation: Any = Annotated[kind, typer.Option(*flag, help=sentence)]
        yield inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=annotation)


@dataclass(frozen=True)
class StopOptions:
    """When to stop iterating; without any of them, the policy's own way."""

    depth: Annotated[str | None, "Iterations of every decision, e.g. 12 (`rdvla eval` takes several: 1,2,4,8)."] = None
    stop: Annotated[
        str | None,
        f"Adaptive stopping: {', '.join(spec.name for spec in BUILT_IN)}, or an installed package's (`rdvla eval` "
        "takes several: action_mse:1e-4,latent:0.03, with thresholds).",
    ] = None
    delta: Annotated[str | None, "Threshold of --stop, e.g. 1e-3 (`rdvla eval` takes several: 1e-2,1e-3)."] = None
    min_depth: Annotated[int | None, "Of --stop: never stop earlier [default: 1]."] = None
    max_depth: Annotated[int | None, f"Of --stop: never go on longer [default: {DEFAULT_MAX_DEPTH}]."] = None
    check_every: Annotated[int | None, "Of --stop: look every n-th iteration [default: 1]."] = None
    defer: Annotated[
        str | None,
        "Of --stop: do not ask the Coda before the scratchpad changes by less than this, e.g. safe or 0.1 "
        "(`rdvla eval` takes several: no,0.1).",
    ] = None

    def rules(self) -> tuple[StopRule | None, ...]:
        """Return the rules to compare: fixed depths, then adaptive ones; (None,) without any.

        Raises:
            ConfigError: a wrong value, or an option of adaptive rules without `stop`.
        """
        fixed = parse_depths(self.depth) if self.depth is not None else ()
        return (*fixed, *self.adaptive()) or (None,)

    def rule(self) -> StopRule | None:
        """Return the only rule, None without any.

        Raises:
            ConfigError: several, a wrong value, or an option of adaptive rules without `stop`.
        """
        found = self.rules()
        if len(found) > 1:
            raise ConfigError(f"one rule is needed here, found {', '.join(map(str, found))}.")
        return found[0]

    def adaptive(self) -> list[StopRule]:
        """Return the adaptive rules among them.

        Raises:
            ConfigError: a wrong value, or an option of adaptive rules without `stop`.
        """
        limits = {name: getattr(self, name) for name in ("min_depth", "max_depth", "check_every")}
        if self.stop is None:
            choose_rule(None, None, say=_flag, threshold=self.delta, defer=self.defer, **limits)
            return []
        named = [part.partition(":") for part in parse_names(self.stop, field="stop")]
        if self.delta is not None and (len(named) > 1 or named[0][1]):
            raise ConfigError(
                "--delta means something else for every rule; give it with one --stop rule without a threshold of its "
                "own, or say --stop action_mse:1e-4,latent:0.03."
            )
        thresholds = [None] if self.delta is None else [_number(part, "delta") for part in self.delta.split(",")]
        asked = [
            StopRule.adaptive(name, threshold=_number(own, "stop") if colon else threshold, **limits)
            for threshold in thresholds
            for name, colon, own in named
        ]
        gates = [None] if self.defer is None else [_gate(part) for part in parse_names(self.defer, field="defer")]
        # beside rules on actions, one on the scratchpad is played as it is; alone with --defer it is an error
        whole = [None] if any(rule.reads_actions for rule in asked) else gates
        return [replace(rule, defer=gate) for rule in asked for gate in (gates if rule.reads_actions else whole)]


def _flag(field: str) -> str:
    return f"--{'delta' if field == 'threshold' else field.replace('_', '-')}"


@dataclass(frozen=True)
class SimulatorOptions:
    """Where simulators find what no package brings."""

    calvin_data: Annotated[
        Path | None,
        "CALVIN's data files, see `rdvla setup calvin` [default: RDVLA_CALVIN_DATA, else the user's cache].",
    ] = None

    def apply(self) -> None:
        """Tell this process, and those it starts."""
        if self.calvin_data is not None:
            os.environ["RDVLA_CALVIN_DATA"] = str(self.calvin_data.expanduser().absolute())


def parse_warm_starts(text: str) -> tuple[WarmStart, ...]:
    """Read where scratchpads begin, e.g. `half` or `noise,half`.

    Raises:
        ConfigError: an unknown or repeated name.
    """
    return tuple(Ask(warm_start=name).warm_start for name in parse_names(text, field="start"))  # type: ignore[arg-type]


START_HELP = (
    "Where scratchpads begin: noise, or where the decision before was after half of its iterations or at its end "
    "(`rdvla eval` takes several: noise,half)."
)


def parse_budgets(text: str | None) -> tuple[float | None, ...]:
    """Read budgets in milliseconds such as `50` or `50,100`; None means no limit.

    Raises:
        ConfigError: not numbers above 0.
    """
    if text is None:
        return (None,)
    budgets = tuple(_number(part, "budget-ms") for part in text.split(","))
    if not all(0 < budget < float("inf") for budget in budgets):
        raise ConfigError(f"budget-ms '{text}': a budget is a number of milliseconds above 0.")
    return budgets


def _gate(text: str) -> float | None:
    return {"no": None, "safe": SAFE_GATE}[text] if text in ("no", "safe") else _number(text, "defer")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} '{text}' is not a number such as 1e-3.") from None
