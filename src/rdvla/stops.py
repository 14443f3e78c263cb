"""Stopping rules as data: what each reads, its default threshold, which way it runs, a sentence for people.

The network, the command line, the wire, the report and the live page all read `rules()`. An installed package adds a
rule with an entry point in the group `rdvla.stops`, called like the rule, that names a `RuleSpec`; its `criterion` is a
class like those of `rdvla.model.stopping`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rdvla import plugins
from rdvla.errors import ConfigError, suggest

ENTRY_POINTS = "rdvla.stops"
DEFAULT_MAX_DEPTH = 32
SAFE_GATE = 0.3
"""`StopRule.defer` where nothing was fitted: well above what the scratchpad changes by where rules usually stop."""


EXACT = ".15g"
"""Format of thresholds, in as few digits as tell one from another: rules are told apart by their names."""


@dataclass(frozen=True)
class RuleSpec:
    """One stopping rule.

    Attributes:
        name: as people type it.
        sentence: when it stops, for people; follows "stop when".
        reads: what it compares between checks: predicted `actions` (asks the Coda every time) or `latents`.
        default_threshold: where nobody gives another.
        criterion: `module:Class` of its `rdvla.model.stopping.StoppingCriterion`.
        runs: `below` stops when the metric falls below the threshold; `above` has a threshold on 1 - metric (a
            similarity), so that the metric itself still falls while the recurrence converges.
    """

    name: str
    sentence: str
    reads: Literal["actions", "latents"]
    default_threshold: float
    criterion: str
    runs: Literal["below", "above"] = "below"

    def limit(self, threshold: float) -> float:
        """Return what the metric, as traces and figures show it, has to fall below."""
        return threshold if self.runs == "below" else 1 - threshold

    def passed(self, metric: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
        """Return where the metric stops the recurrence, decided as its criterion does (not a number never stops)."""
        return metric < np.float32(threshold) if self.runs == "below" else 1 - metric > np.float32(threshold)

    def condition(self, threshold: float) -> str:
        """Return e.g. `action_mse < 0.001` or `cosine > 0.999`."""
        return f"{self.name} {'<' if self.runs == 'below' else '>'} {threshold:{EXACT}}"


BUILT_IN = (
    RuleSpec(
        "action_l2",
        "the actions barely move: squared L2 distance of consecutive chunks, the paper's rule",
        "actions",
        1e-3,
        "rdvla.model.stopping:ActionL2",
    ),
    RuleSpec(
        "action_mse",
        "the actions barely move: mean squared difference of consecutive chunks, the released kl_divergence",
        "actions",
        1e-3,
        "rdvla.model.stopping:ActionMSE",
    ),
    RuleSpec(
        "cosine",
        "the actions' direction settles: cosine similarity of consecutive chunks",
        "actions",
        0.999,
        "rdvla.model.stopping:CosineDistance",
        runs="above",
    ),
    RuleSpec(
        "latent",
        "the scratchpad settles: its relative change; needs no Coda",
        "latents",
        0.03,
        "rdvla.model.stopping:LatentChange",
    ),
    RuleSpec(
        "latent_mse",
        "the scratchpad settles: its mean squared change; needs no Coda",
        "latents",
        1e-3,
        "rdvla.model.stopping:LatentMSE",
    ),
)

FIXED = "fixed"
"""Name of the rule that always runs `max_depth` iterations; it compares nothing, so it has no `RuleSpec`."""


@cache
def rules() -> Mapping[str, RuleSpec]:
    """Return every adaptive rule by name: the built-in ones, then those of installed packages.

    Raises:
        ConfigError: an installed package's entry point is no `RuleSpec` of its name, or its name is taken.
    """
    found = {spec.name: spec for spec in BUILT_IN}
    built_in = (FIXED, *found)
    for name, entry in plugins.find(ENTRY_POINTS, dict.fromkeys(built_in, __name__)).items():
        if name not in built_in:
            found[name] = plugins.load(entry, lambda spec: isinstance(spec, RuleSpec), "a RuleSpec")
            if found[name].name != name:
                raise ConfigError(
                    f"the entry point '{name}' of {ENTRY_POINTS} is the rule '{found[name].name}'; call it so."
                )
    return found


def check_name(name: object) -> None:
    """Make sure that there is a rule of this name.

    Raises:
        ConfigError: there is none; the message suggests the nearest.
    """
    if name == FIXED:
        return
    known = (FIXED, *rules())
    if not isinstance(name, str):
        raise ConfigError(f"the stopping rule's name must be text: one of {', '.join(known)}.")
    if name not in known:
        raise ConfigError(f"unknown stopping rule '{name}'.{suggest(name, known)}")


def is_number(value: object) -> bool:
    """Say whether a value is a real number; a truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class StopRule:
    """When to stop thinking, as plain data; `rdvla.model.stopping` turns it into a criterion.

    Attributes:
        name: `fixed` (always `max_depth` iterations) or a name of `rules()`.
        threshold: the rule's threshold; None takes its default.
        min_depth: never stop before this many iterations.
        max_depth: never go beyond this many iterations; for `fixed`, how many there are.
        check_every: evaluate the rule every n-th iteration.
        defer: the Coda is not asked before the scratchpad changes by less than this relative amount (the metric of
            `latent`) from one check to the next; None asks at every check. Of rules that read actions.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """

    name: str = FIXED
    threshold: float | None = None
    min_depth: int = 1
    max_depth: int = DEFAULT_MAX_DEPTH
    check_every: int = 1
    defer: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for field in ("min_depth", "max_depth", "check_every"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field} must be a whole number of at least 1, found {value!r:.40}.")
        if self.min_depth > self.max_depth:
            raise ConfigError(f"min_depth ({self.min_depth}) is greater than max_depth ({self.max_depth}).")
        if self.name == FIXED:
            if self.threshold is not None:
                raise ConfigError("the rule 'fixed' has no threshold; drop it or choose an adaptive rule.")
        elif self.threshold is None:
            object.__setattr__(self, "threshold", rules()[self.name].default_threshold)
        elif not is_number(self.threshold) or not 0 <= self.threshold < np.inf:
            raise ConfigError(f"threshold must be a finite number of at least 0, found {self.threshold!r:.40}.")
        if self.defer is not None:
            if not self.reads_actions:
                raise ConfigError(f"the rule '{self.name}' asks the Coda once, so there is nothing to defer; drop it.")
            if not is_number(self.defer) or not 0 < self.defer < np.inf:
                raise ConfigError(
                    f"defer must be a relative change above 0, e.g. {SAFE_GATE}, found {self.defer!r:.40}."
                )

    @classmethod
    def fixed(cls, depth: int) -> "StopRule":
        """Return the rule that always runs `depth` iterations."""
        return cls(name=FIXED, max_depth=depth)

    @classmethod
    def adaptive(cls, name: str, **fields: Any) -> "StopRule":
        """Return the adaptive rule `name`; `fields` that are None take their defaults.

        Raises:
            ConfigError: no adaptive rule, or a value out of range.
        """
        if name not in rules():
            raise ConfigError(f"unknown adaptive rule '{name}'.{suggest(name, rules())}")
        return cls(name, **{field: value for field, value in fields.items() if value is not None})

    @property
    def spec(self) -> RuleSpec | None:
        """What the rule is; None for `fixed`."""
        return None if self.name == FIXED else rules()[self.name]

    @property
    def depth(self) -> int | None:
        """Iterations of `fixed`; None of a rule that adapts them."""
        return self.max_depth if self.name == FIXED else None

    @property
    def reads_actions(self) -> bool:
        """Whether it asks the Coda at every check, not just once."""
        return self.spec is not None and self.spec.reads == "actions"

    @property
    def condition(self) -> str:
        """When it stops, for people: `depth 4`, `action_mse < 0.001`, `cosine > 0.999`."""
        spec = self.spec
        if spec is None or self.threshold is None:
            return f"depth {self.max_depth}"
        gate = "" if self.defer is None else f", Coda deferred to {self.defer:{EXACT}}"
        return spec.condition(self.threshold) + gate

    @property
    def limit(self) -> float | None:
        """What the metric in traces has to fall below; None for `fixed`."""
        spec = self.spec
        return None if spec is None or self.threshold is None else spec.limit(self.threshold)

    def __str__(self) -> str:
        if self.name == FIXED:
            return f"fixed({self.max_depth})"
        parts = [f"{self.threshold:{EXACT}}", f"max {self.max_depth}"]
        parts += [] if self.defer is None else [f"defer {self.defer:{EXACT}}"]
        parts += [f"min {self.min_depth}"] if self.min_depth > 1 else []
        parts += [f"every {self.check_every}"] if self.check_every > 1 else []
        return f"{self.name}({', '.join(parts)})"


DEFAULT_STOP = StopRule.fixed(12)
"""The released evaluation's depth; where neither a request nor the checkpoint says anything."""


def choose_rule(
    depth: int | None, stop: str | None, *, say: Callable[[str], str] = str, **adaptive: Any
) -> StopRule | None:
    """Return the rule of settings that fix the iterations (`depth`) or adapt them (`stop`); None if they do neither.

    Args:
        depth: iterations of every decision.
        stop: name of an adaptive rule.
        say: how a field is called where it was set, for messages, e.g. `evaluation.threshold`.
        adaptive: fields of `StopRule` that belong to `stop`; None where one was not set.

    Raises:
        ConfigError: both, a field of adaptive rules without one, no adaptive rule, or a value out of range.
    """
    if depth is not None and stop is not None:
        raise ConfigError(f"{say('depth')} fixes the iterations and {say('stop')} adapts them; give one of the two.")
    if stop is not None:
        return StopRule.adaptive(stop, **adaptive)
    for field, value in adaptive.items():
        if value is not None:
            raise ConfigError(f"{say(field)} belongs to an adaptive rule; add {say('stop')}, e.g. action_mse.")
    return None if depth is None else StopRule.fixed(depth)
