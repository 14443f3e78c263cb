"""What `rdvla train` shows, and how it plays episodes in between."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rdvla.data.findings import Finding
from rdvla.envs import find_suite
from rdvla.envs.fit import require_fit
from rdvla.eval.protocol import EvalConfig, check_init_states
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.runner import Resources, evaluate
from rdvla.policies.network import check_device
from rdvla.policies.sources import LoadOptions, choose_policy
from rdvla.policy import PolicyMetadata
from rdvla.report.training import write_training_report
from rdvla.train.config import TrainConfig
from rdvla.train.loop import Watcher


def check_evaluation(config: TrainConfig) -> None:
    """Make sure that the episodes a run is to play can be played, before its first step.

    Raises:
        ConfigError: a device that is not there, an unknown suite or task, more episodes than it has initial states, or
            cameras or a gripper convention that the suite does not have.
    """
    wanted = config.evaluation
    if wanted is None:
        return
    check_device(wanted.device)
    for suite in map(find_suite, wanted.suites):
        asked = f"evaluation.episodes is {wanted.episodes}"
        check_init_states(suite, wanted.task_ids, range(wanted.episodes), asked)
        robot, head = suite.embodiment, config.model.head
        sizes = (head.state_dim or robot.state_dim, head.action_dim or robot.action_dim)
        planned = PolicyMetadata("in training", tuple(config.data.cameras), *sizes, 1, {"gripper": config.data.gripper})
        require_fit(planned, suite)


class Screen(Watcher):
    """A progress bar below the logged lines; without a terminal, the lines alone. Only the first process speaks."""

    def __init__(self, config: TrainConfig) -> None:
        """Prepare to show the run of `config`."""
        self._config = config
        self._console = Console(quiet=os.environ.get("RANK", "0") != "0", highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("opening the dataset", total=None, numbers="")
        self._slow = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def decoding(self, done: int, total: int) -> None:
        """Show the decoded episodes."""
        self._bar.update(self._task, description="decoding images once", completed=done, total=total)

    def found(self, finding: Finding) -> None:
        """Print a line about the dataset."""
        style = "yellow" if finding.severity == "warning" else None
        self._console.print(f"{finding.severity}: {finding}", style=style, soft_wrap=True, markup=False)

    def started(self, step: int) -> None:
        """Begin to count steps."""
        self._bar.reset(self._task, description="training", total=self._config.max_steps, completed=step, numbers="")

    def stepped(self, step: int, numbers: Mapping[str, float]) -> None:
        """Move the bar."""
        shown = f"loss {numbers['loss']:.4f}  lr {numbers['learning_rate']:.2g}{self._slow}"
        self._bar.update(self._task, completed=step, numbers=shown)

    def logged(self, step: int, numbers: Mapping[str, float]) -> None:
        """Print a line."""
        if "samples_per_second" in numbers:
            self._slow = f"  {numbers['samples_per_second']:.1f} samples/s  {numbers['memory_gb']:.1f} GB"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._console.print(f"[bold]{step:>7}[/bold]/{self._config.max_steps}  {shown}", soft_wrap=True)

    def warned(self, message: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

    def ended(self, policy: Path) -> None:
        """Write the report of the run, and say where policy and report are."""
        if self._console.quiet:
            return
        report = self._config.output / "report.html"
        write_training_report(self._config.output, report)
        self._console.print(f"policy: {policy}\nreport: {report}", soft_wrap=True)

    def will_evaluate(self, policy: PolicyMetadata) -> None:
        """Make sure that such policies, whose sizes the dataset has decided, fit the run's suites.

        Raises:
            ConfigError: they do not.
        """
        wanted = self._config.evaluation
        for name in wanted.suites if wanted is not None else ():
            require_fit(policy, find_suite(name))

    def evaluate(self, policy: Path, output: Path) -> Mapping[str, float]:
        """Play the run's episodes.

        Returns success rates in all and by suite, of chains how many stages are solved in a row, and what an adaptive
        rule iterates.
        """
        wanted = self._config.evaluation
        assert wanted is not None
        name, digest, factory = choose_policy(policy, None, LoadOptions(device=wanted.device))
        config = EvalConfig(
            policy=name,
            policy_digest=digest,
            suites=wanted.suites,
            task_ids=wanted.task_ids,
            init_states=tuple(range(wanted.episodes)),
            stops=(wanted.rule,),
            horizons=(str(wanted.horizon),),
        )
        suites = {name: find_suite(name) for name in wanted.suites}
        records = evaluate(
            config,
            suites=suites,
            policy_factory=factory,
            output=output,
            resources=Resources(workers=wanted.workers),
        )
        played = [record for record in records if isinstance(record, EpisodeRecord)]
        if lost := len(records) - len(played):
            self.warned(
                f"{lost} of {len(records)} episodes could not be played (see '{output}'); rates are of the rest."
            )
        rates: dict[str, Sequence[float]] = {
            f"success/{suite}": [r.success for r in played if r.suite == suite] for suite in suites
        }
        rates["success/all"] = [record.success for record in played]
        chains = [name for name, suite in suites.items() if suite.num_stages > 1]
        rates |= {f"in_a_row/{name}": [r.stages_solved for r in played if r.suite == name] for name in chains}
        if wanted.stop is not None:
            rates["iterations/all"] = [count for record in played for count in record.iterations]
        return {"errors/all": lost} | {name: sum(found) / len(found) for name, found in rates.items() if found}
