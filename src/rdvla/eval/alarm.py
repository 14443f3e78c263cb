"""How well a number known at every decision foretells that an episode fails, and the step limit worth an alarm.

An episode's score is the largest of its decisions'. The limit is split-conformal on successful episodes: with n of them
it is number ceil((n + 1)(1 - alpha)) in rising order: a further success exceeds it with probability alpha at most.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, suggest
from rdvla.eval.calibration import folds_of
from rdvla.eval.records import EpisodeRecord, read_episodes
from rdvla.policy import DISAGREEMENT, Alarm

WINDOW = 5


@dataclass(frozen=True)
class PacedEpisode:
    """What an alarm may look at in one episode.

    Attributes:
        task: suite and task.
        success: whether it was solved.
        length: its control steps.
        steps: control steps taken before every decision, `[N]`.
        depths: iterations of every decision, `[N]`.
        disagreement: of every decision (`rdvla.policy.DISAGREEMENT`), `[N]`, 0 where no plan was left to disagree with;
            None if it was not recorded (whole chunks were executed, or it was before there was such a signal).
        checkpoint: fingerprint of the policy's; empty if it has none.
    """

    task: str
    success: bool
    length: int
    steps: NDArray[np.float64]
    depths: NDArray[np.float64]
    disagreement: NDArray[np.float64] | None
    checkpoint: str = ""


def _mean_of_window(values: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.cumsum(values)
    before = np.concatenate((np.zeros(WINDOW), sums))[: len(sums)]
    return (sums - before) / np.minimum(np.arange(1, len(sums) + 1), WINDOW)


def _disagreement_of(episode: PacedEpisode) -> NDArray[np.float64]:
    assert episode.disagreement is not None
    return episode.disagreement


SCORES: Mapping[str, Callable[[PacedEpisode], NDArray[np.float64]]] = {
    "steps": lambda episode: episode.steps,
    "depth": lambda episode: episode.depths,
    f"mean depth of {WINDOW}": lambda episode: _mean_of_window(episode.depths),
}
"""What is compared, by name: one number per decision; the first is what `fit_alarm` limits."""
DISAGREEMENT_SCORES: Mapping[str, Callable[[PacedEpisode], NDArray[np.float64]]] = {
    "disagreement": _disagreement_of,
    f"mean disagreement of {WINDOW}": lambda episode: _mean_of_window(_disagreement_of(episode)),
}
"""What is compared as well where every episode has recorded it."""


@dataclass(frozen=True)
class Detection:
    """What a limit does to episodes of tasks that it was not fitted on.

    Attributes:
        alpha: share of successes that were to raise the alarm at most.
        found: failures that raise it; None where tasks had too few successes beside theirs for a limit.
        failures: how many there are.
        false: successes that raise it; None likewise.
        successes: how many there are.
        lead: control steps between alarm and end of the failures found, on average; None without any.
    """

    alpha: float
    found: int | None
    failures: int
    false: int | None
    successes: int
    lead: float | None


@dataclass(frozen=True)
class Scored:
    """A score, measured.

    Attributes:
        name: of `SCORES`.
        auroc: probability that a failure's score is above a success's; None without either.
        detections: by alpha.
    """

    name: str
    auroc: float | None
    detections: tuple[Detection, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return asdict(self)


def read_played(folders: Sequence[Path], rule: str | None = None) -> list[PacedEpisode]:
    """Read the episodes of evaluations, in which chunks were executed one after the other.

    Args:
        folders: written by `rdvla eval`.
        rule: the one whose episodes are wanted, as the records name it; None takes the only one.

    Raises:
        RecordError: a folder holds no evaluation, or a record is damaged.
        ConfigError: no episode was played, none under `rule`, a folder is named twice, they are of several policies or
            rules, episodes have several stages, or actions were executed out of turn.
    """
    records = [record for _, record in read_episodes(folders)]
    if not records:
        raise ConfigError("no episode was played in these folders, so there is nothing to calibrate an alarm on.")
    if rule is not None:
        known = sorted({record.rule for record in records})
        if rule not in known:
            raise ConfigError(f"no episode was played under the rule '{rule}'.{suggest(rule, known)}")
        records = [record for record in records if record.rule == rule]
    played = sorted({f"{record.rule}, {record.execution}" for record in records})
    if len(played) > 1:
        raise ConfigError(
            f"these episodes were played in {len(played)} ways ({'; '.join(played)}), each with its own steps and "
            "iterations; an alarm is of one: name a rule with --rule, and give runs of one way to execute actions."
        )
    for record in records:
        if record.num_stages > 1 or sum(record.executed) != record.steps:
            raise ConfigError(
                f"{record.suite} task {record.task_id}: the record does not say at which step every decision was made "
                "(several stages, or chunks that overlap); an alarm needs one stage, executed synchronously."
            )
    return [
        PacedEpisode(
            task=f"{record.suite} {record.task_id}",
            success=record.success,
            length=record.steps,
            steps=np.cumsum([0, *record.executed[:-1]]).astype(float),
            depths=np.array(record.iterations, dtype=float),
            disagreement=_disagreement(record),
            checkpoint=record.checkpoint,
        )
        for record in records
    ]


def _disagreement(record: EpisodeRecord) -> NDArray[np.float64] | None:
    known = record.signals.get(DISAGREEMENT)
    return None if known is None else np.array([value or 0.0 for value in known])


def conformal(scores: Sequence[float], alpha: float) -> float:
    """Return the limit that one more of such scores exceeds with probability `alpha` at most; infinite if too few.

    Raises:
        ConfigError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be between 0 and 1, e.g. 0.1, found {alpha!r}.")
    number = math.ceil((len(scores) + 1) * (1 - alpha))
    return sorted(scores)[number - 1] if number <= len(scores) else math.inf


def fit_alarm(episodes: Sequence[PacedEpisode], alpha: float) -> Alarm:
    """Return the step limit for `alpha`.

    Raises:
        ConfigError: alpha is not between 0 and 1, or there are too few successful episodes for it.
    """
    scores = [float(episode.steps.max()) for episode in episodes if episode.success]
    limit = conformal(scores, alpha)
    if not math.isfinite(limit):
        raise ConfigError(
            f"alpha = {alpha:g} needs at least {math.ceil(1 / alpha) - 1} successful episodes, found {len(scores)}."
        )
    return Alarm(steps=max(1, int(limit)), alpha=alpha, episodes=len(scores))


def measure_scores(episodes: Sequence[PacedEpisode], alphas: Sequence[float], folds: int) -> list[Scored]:
    """Measure every score that all episodes have, on tasks whose successes its limits were not fitted on.

    Args:
        episodes: of at least two tasks.
        alphas: shares of successes that may raise the alarm.
        folds: into so many parts the tasks are divided, at least 2.

    Raises:
        ConfigError: one task only, fewer than 2 folds, or an alpha out of range.
    """
    tasks = sorted({episode.task for episode in episodes})
    if len(tasks) < 2 or folds < 2:
        raise ConfigError(
            f"an alarm is measured on other tasks: it needs 2 tasks and 2 folds, found {len(tasks)}, {folds}."
        )
    part = dict(zip(tasks, folds_of(tasks, folds).tolist(), strict=True))
    recorded = all(episode.disagreement is not None for episode in episodes)
    scores = {**SCORES, **DISAGREEMENT_SCORES} if recorded else SCORES
    return [_measure(name, score, episodes, part, alphas) for name, score in scores.items()]


def _measure(
    name: str,
    score: Callable[[PacedEpisode], NDArray[np.float64]],
    episodes: Sequence[PacedEpisode],
    part: Mapping[str, int],
    alphas: Sequence[float],
) -> Scored:
    scores = [score(episode) for episode in episodes]
    largest = [(episode, float(values.max())) for episode, values in zip(episodes, scores, strict=True)]
    fitting = {fold: [s for e, s in largest if e.success and part[e.task] != fold] for fold in set(part.values())}
    detections = []
    for alpha in alphas:
        limits = {fold: conformal(solved, alpha) for fold, solved in fitting.items()}
        above = [values > limits[part[episode.task]] for episode, values in zip(episodes, scores, strict=True)]
        raised = [(episode, found) for episode, found in zip(episodes, above, strict=True) if found.any()]
        leads = [e.length - float(e.steps[found.argmax()]) for e, found in raised if not e.success]
        limited = all(map(math.isfinite, limits.values()))
        detections.append(
            Detection(
                alpha=alpha,
                found=len(leads) if limited else None,
                failures=sum(not episode.success for episode in episodes),
                false=len(raised) - len(leads) if limited else None,
                successes=sum(episode.success for episode in episodes),
                lead=float(np.mean(leads)) if leads and limited else None,
            )
        )
    failed, solved = (np.array([s for e, s in largest if e.success is success]) for success in (False, True))
    return Scored(name, auroc(failed, solved), tuple(detections))


def auroc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float | None:
    """Return the probability that one of `higher` is above one of `lower`, ties counting half; None without either."""
    if not len(higher) or not len(lower):
        return None
    order = np.sort(lower)
    twice_below_once_tied = np.searchsorted(order, higher, "left") + np.searchsorted(order, higher, "right")
    return float(twice_below_once_tied.mean() / 2 / len(lower))
