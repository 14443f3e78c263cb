"""The card (README.md) of a policy on the hub: facts of the checkpoint and measured results, nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.eval.intervals import Rate
from rdvla.eval.summary import Summary, group_by, summarise_group
from rdvla.report.load import Run, say_starts

NOTES_MARK = "<!-- rdvla push writes what is above; below are the authors' own words, which it keeps -->"
_RECIPE = (
    "model.preset", "model.init_from", "model.base_vlm", "model.lora", "max_steps", "batch_size",
    "grad_accumulation_steps", "optimizer.learning_rate", "optimizer.schedule", "optimizer.muon", "ema_decay",
    "data.augmentation", "data.state_noise", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Attributes:
        repository: `owner/name` that it will be found under.
        checkpoint: the policy.
        layout: `native` or `lerobot`.
        licence: an identifier of the hub's, e.g. `apache-2.0`.
        datasets: hub ids that it was trained on.
        base: hub id of what it was trained from; None for none.
        evaluations: of this policy.
        validation: iterations -> mean absolute error on held-out episodes; empty if unknown.
        notes: the authors' own words, Markdown; empty for none.
    """

    repository: str
    checkpoint: Checkpoint
    layout: str
    licence: str
    datasets: Sequence[str] = ()
    base: str | None = None
    evaluations: Sequence[Run] = ()
    validation: Mapping[int, float] | None = None
    notes: str = ""


@dataclass(frozen=True)
class SuiteResult:
    """Episodes of one suite under one rule.

    Attributes:
        suite: its name, with the protocol if it is not the usual one.
        rule: how long the policy thought.
        execution: how its actions were executed.
        starts: where the episodes began, for people.
        summary: the numbers.
    """

    suite: str
    rule: str
    execution: str
    starts: str
    summary: Summary


def model_card(facts: Facts) -> str:
    """Return the card: metadata that the hub indexes, then use, data, recipe, results and limits."""
    results = results_of(facts.evaluations)
    parts = (
        f"---\n{yaml.safe_dump(_metadata(facts, results), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.repository.partition('/')[2]}",
        _summary(facts.checkpoint),
        "## Use\n\n" + _use(facts),
        "## What it takes and gives\n\n" + _interface(facts.checkpoint),
        "## Data\n\n" + _data(facts),
        "## Recipe\n\n" + _recipe(facts.checkpoint.notes.get("recipe")),
        "## Results\n\n" + _results(results, facts.validation or {}),
        "## Limits\n\n" + _limits(results),
        f"{NOTES_MARK}\n\n{facts.notes}".rstrip(),
    )
    return "\n\n".join(parts) + "\n"


def own_words(card: str) -> str:
    """Return what the authors wrote themselves in a README: what follows the mark, or all of it without metadata."""
    _, marked, after = card.partition(NOTES_MARK)
    if marked:
        return after.strip()
    if card.startswith("---\n") and "\n---" in card[4:]:
        card = card[4:].partition("\n---")[2]
    return card.strip()


def results_of(runs: Sequence[Run]) -> list[SuiteResult]:
    """Return the numbers per suite and rule, in order of appearance."""
    found = []
    for run in runs:
        groups = group_by(run.records, lambda each: (each.suite, each.protocol, each.rule, each.execution))
        for (suite, protocol, rule, execution), records in groups.items():
            named = f"{suite}, protocol {protocol}" if protocol else suite
            found.append(SuiteResult(named, rule, execution, say_starts(records), summarise_group(records)))
    return found


def percent(rate: Rate) -> str:
    """Return `186/200 = 93 % (89-96)`."""
    ends = f"{100 * rate.low:.0f}-{100 * rate.high:.0f}"
    return f"{rate.successes}/{rate.n} = {100 * rate.value:.0f} % ({ends})" if rate.n else "none played"


def _metadata(facts: Facts, results: Sequence[SuiteResult]) -> dict[str, Any]:
    lerobot = ["lerobot"] if facts.layout == "lerobot" else []
    fields: dict[str, Any] = {
        "license": facts.licence,
        "library_name": "lerobot" if lerobot else "rdvla",
        "pipeline_tag": "robotics",
        "language": ["en"],
        "tags": ["robotics", "vision-language-action", "recurrent-depth", "rdvla", *lerobot],
        "datasets": list(facts.datasets),
        "base_model": facts.base,
        "model-index": _index(facts.repository, results),
    }
    return {name: value for name, value in fields.items() if value}


def _index(repository: str, results: Sequence[SuiteResult]) -> list[dict[str, Any]]:
    entries = []
    for result in results:
        rate = result.summary.rate
        if not rate.n:
            continue
        how = f"{result.rule}, {result.starts}, n = {rate.n}, 95 %"
        share = f"% solved ({how} {100 * rate.low:.1f} to {100 * rate.high:.1f})"
        metrics = [{"type": "success_rate", "name": share, "value": round(100 * rate.value, 2)}]
        if result.summary.chain is not None:
            average = result.summary.chain.average
            length = f"stages in a row ({how} {average.low:.2f} to {average.high:.2f})"
            metrics.append({"type": "average_length", "name": length, "value": round(average.value, 3)})
        dataset = {"name": result.suite, "type": result.suite}
        entries.append({"task": {"type": "robotics", "name": "Robotics"}, "dataset": dataset, "metrics": metrics})
    return [{"name": repository.partition("/")[2], "results": entries}] if entries else []


def _summary(checkpoint: Checkpoint) -> str:
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    backbone = checkpoint.model.config.backbone
    return (
        f"A vision-language-action policy that decides how long to think: {parameters / 1e6:.1f} M parameters, "
        f"backbone `{backbone.kind}`. A recurrent core turns a scratchpad into {_chunk(checkpoint)}, for a fixed "
        "number of iterations or until they no longer change. Made with `rdvla`."
    )


def _chunk(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.model.config.head.chunk_size} actions"


def _use(facts: Facts) -> str:
    name = facts.repository
    lines = [
        "```",
        f"rdvla eval --checkpoint {name} --suite SUITE --output runs/{name.partition('/')[2]}",
        f"rdvla serve --checkpoint {name}",
    ]
    if facts.layout == "lerobot":
        lines.append(f"lerobot-eval --policy.path={name} --env.type=libero   # with lerobot_policy_rdvla installed")
    python = f'from rdvla.policies import load_policy\n\npolicy = load_policy("{name}")   # or "{name}@REVISION"'
    return "\n".join([*lines, "```", "", "```python", python, "```"])


def _interface(checkpoint: Checkpoint) -> str:
    config, path = checkpoint.model.config, checkpoint.image_path
    rows = {
        "cameras": ", ".join(f"`{name}`" for name in config.cameras) + f", upright, resized to {path.size} pixels",
        "state": f"{config.head.state_dim} numbers",
        "instruction": "one English sentence",
        "actions": f"{_chunk(checkpoint)} of {config.head.action_dim} numbers, in the environment's own convention",
        "gripper": f"`{checkpoint.actions.gripper}`",
        "statistics": ", ".join(f"`{name}`" for name in checkpoint.statistics),
    }
    if checkpoint.default_stop is not None:
        rows["stops, unless told"] = f"`{checkpoint.default_stop}`"
    if checkpoint.alarm is not None:
        rows["raises an alarm"] = f"after {checkpoint.alarm.steps} control steps"
    return _table(("", ""), rows.items())


def _data(facts: Facts) -> str:
    rows = [
        (f"`{name}`", entry.num_trajectories or "unknown", entry.num_transitions or "unknown")
        for name, entry in facts.checkpoint.statistics.items()
    ]
    table = _table(("statistics", "episodes", "steps"), rows)
    roots = _at(facts.checkpoint.notes.get("recipe"), "data.root") or []
    roots = map(_value, roots if isinstance(roots, list) else [roots])
    named = list(dict.fromkeys([*(f"`{name}`" for name in facts.datasets), *roots]))
    said = f"Trained on {', '.join(named)}." if named else "The checkpoint names no dataset."
    return f"{said}\n\n{table}"


def _recipe(recipe: Any) -> str:
    if not isinstance(recipe, Mapping):
        return "The checkpoint does not say how it was trained."
    rows = [(f"`{key}`", _value(_at(recipe, key))) for key in _RECIPE if _at(recipe, key) is not None]
    return _table(("setting", ""), rows) + "\n\nEvery setting is in the configuration's `notes.recipe`."


def _results(results: Sequence[SuiteResult], validation: Mapping[int, float]) -> str:
    parts = []
    if results:
        rows = [
            (
                result.suite,
                f"`{result.rule}`",
                result.execution,
                result.starts,
                _score(result.summary),
                "" if result.summary.mean_iterations is None else f"{result.summary.mean_iterations:.1f}",
                result.summary.errors,
            )
            for result in results
        ]
        heads = ("suite", "thinks", "executes", "starts", "solved", "iterations, mean", "errors")
        parts.append(_table(heads, rows))
        parts.append(
            "Measured with `rdvla eval`; 95 % intervals in parentheses (of rates Wilson's, of tasks in a row "
            "bootstrapped, where all chains are alike sums of Wilson's). Episodes that could not be played are errors "
            "and count neither way."
        )
    else:
        parts.append("No evaluation came with this policy: how often it succeeds is not said here.")
    if validation:
        errors = ", ".join(f"{depth}: {error:.4f}" for depth, error in sorted(validation.items()))
        parts.append(f"Mean absolute error of normalised actions on held-out episodes, by iterations: {errors}.")
    return "\n\n".join(parts)


def _score(summary: Summary) -> str:
    if summary.chain is None:
        return percent(summary.rate)
    average = summary.chain.average
    return f"{average.value:.2f} in a row ({average.low:.2f}-{average.high:.2f}); all: {percent(summary.rate)}"


def _limits(results: Sequence[SuiteResult]) -> str:
    suites = ", ".join(dict.fromkeys(result.suite for result in results))
    seen = f"It was measured in {suites} and nowhere else." if results else "No measurement came with it."
    robot = "on a robot put limits around them (`rdvla.robot` has an action guard)"
    foreign = "observations and actions of another convention make it act wrongly"
    lines = (
        f"{seen} Another robot, camera position, task or sentence is outside of what is known.",
        f"Actions are commands that nothing has checked: {robot}.",
        f"Statistics, image path and gripper convention belong to the policy; {foreign}.",
    )
    return "\n".join(f"- {line}" for line in lines)


def _at(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def _value(value: Any) -> str:
    if isinstance(value, str):  # of a folder of the machine that trained, only the name
        return f"`{Path(value).name if Path(value).is_absolute() else value}`"
    return f"`{json.dumps(value)}`" if isinstance(value, Mapping | list) else str(value)


def _table(heads: Sequence[str], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
