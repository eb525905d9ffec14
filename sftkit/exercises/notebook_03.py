"""The exercises of notebook 03."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near

FITTED = 0.1
SPARE_S = 60.0
USUAL_DECAY = 0.01
_WORDS = ("healthy", "no gradient", "too slow")


def _diagnoses(given: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, steps in given["runs"].items():
        if max(step.grad_norm for step in steps) == 0:
            found[name] = "no gradient"
        else:
            found[name] = "healthy" if steps[-1].loss < FITTED else "too slow"
    if len(set(found.values())) < len(_WORDS):
        raise SftkitError(
            "These runs do not show every kind of fault. Raise fit_steps at the top until the "
            f"first run ends below {FITTED:g}, and run section 1 again."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """Held-out loss by rate, and whether a rate beats the default beyond chance."""

    losses: Mapping[float, float]
    beats: Mapping[float, bool]

    @property
    def best(self) -> float:
        return min(self.losses, key=lambda rate: self.losses[rate])


def _sweep(given: Mapping[str, Any]) -> _Sweep:
    done = {rate: run for rate, run in given["sweep"].items() if run.heldout is not None}
    compared = given["compared"]
    return _Sweep(
        losses={rate: float(run.heldout.after) for rate, run in done.items()},
        beats={rate: compared[rate] is not None and compared[rate].ci95[1] < 0 for rate in done},
    )


@dataclass(frozen=True, kw_only=True)
class _TooLong:
    held: Mapping[int, float]
    trained: float

    @property
    def lowest(self) -> int:
        return min(self.held, key=lambda step: self.held[step])

    @property
    def last(self) -> int:
        return max(self.held)

    @property
    def lost(self) -> float:
        return self.held[self.last] - self.held[self.lowest]


def _too_long(given: Mapping[str, Any]) -> _TooLong:
    steps = given["run"].steps
    held = {s.step: float(s.heldout_loss) for s in steps if s.heldout_loss is not None}
    found = _TooLong(held=held, trained=float(steps[-1].loss))
    if found.lowest == found.last:
        raise SftkitError(
            "In this run the held-out loss was lowest at the end. Raise fit_epochs at the top and "
            "run section 3 again."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Decay:
    rates: tuple[float, ...]
    decay: float

    def taken(self, decay: float) -> float:
        return 1 - math.prod(1 - rate * decay for rate in self.rates)


def _decay(given: Mapping[str, Any]) -> _Decay:
    run = given["run"]
    return _Decay(
        rates=tuple(float(step.learning_rate) for step in run.steps),
        decay=float(run.settings.weight_decay),
    )


def _close(value: Any, expected: float) -> bool:
    return math.isclose(float(value), expected, rel_tol=0.03, abs_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class _Kill:
    killed: int
    saved: int
    per_step_s: float

    @property
    def every(self) -> int:
        return int(SPARE_S // self.per_step_s)


def _kill(given: Mapping[str, Any]) -> _Kill:
    whole = given["whole"]
    return _Kill(
        killed=int(given["killed"][-1].step),
        saved=int(given["saved"]),
        per_step_s=float(whole[-1].seconds) / len(whole),
    )


EXERCISES = (
    Exercise(
        id="03.1",
        asks="a word for each run: healthy, no gradient or too slow",
        given=("runs",),
        facts=_diagnoses,
        properties=(
            Property(
                says="The answer should have one of the three words for each run.",
                holds=lambda a, f: set(a) == set(f) and set(a.values()) <= set(_WORDS),
                hint="Hand in a dictionary with the keys of `runs`.",
            ),
            Property(
                says="The healthy run should be found.",
                holds=lambda a, f: (
                    [n for n in f if a[n] == "healthy"] == [n for n in f if f[n] == "healthy"]
                ),
                hint=f"Look at `steps[-1].loss`: a healthy loop brings one batch below {FITTED:g}.",
            ),
            Property(
                says="A run that gets no gradient should be told from one that is too slow.",
                holds=lambda a, f: dict(a) == f,
                hint="In one of them `grad_norm` is exactly 0 in every step. In the other it is "
                "not.",
            ),
        ),
        deepens="A flat loss has two families of causes, and the norm of the gradient tells them "
        "apart: nothing reaches the weights, or what reaches them moves them too little.",
    ),
    Exercise(
        id="03.2",
        asks="(rate, is_better): the lowest loss, and whether it beats the default beyond chance",
        given=("sweep", "compared"),
        facts=_sweep,
        properties=(
            Property(
                says="The answer should be a rate that was tried, and True or False.",
                holds=lambda a, f: (
                    len(a) == 2 and float(a[0]) in f.losses and str(a[1]) in ("True", "False")
                ),
                hint="Hand in a key of `sweep` and a truth value, in this order.",
            ),
            Property(
                says="The rate should be the one with the lowest held-out loss.",
                holds=lambda a, f: float(a[0]) == f.best,
                hint="Compare `run.heldout.after`. The training loss is not the question.",
            ),
            Property(
                says="The second part should follow from the interval.",
                holds=lambda a, f: bool(a[1]) == f.beats[f.best],
                hint="`compared[rate].ci95` is the interval of the difference to the default. "
                "Does all of it lie below 0?",
            ),
        ),
        deepens="The lowest of several measurements is always a little lucky; a rate is chosen on "
        "validation rows so that the test does not share that luck.",
    ),
    Exercise(
        id="03.3",
        asks="(step, lost): where the held-out loss was lowest, and what going on cost",
        given=("run",),
        facts=_too_long,
        properties=(
            Property(
                says="The answer should be a step and a number.",
                holds=lambda a, _: len(a) == 2 and is_whole(a[0]) and is_number(a[1]),
                hint="First the number of a step, then a difference of two losses.",
            ),
            Property(
                says="The step should be one after which the held-out loss was measured.",
                holds=lambda a, f: a[0] in f.held,
                hint="In most steps `heldout_loss` is None. Leave those out.",
            ),
            Property(
                says="No other step should have a lower held-out loss.",
                holds=lambda a, f: a[0] == f.lowest,
                hint="Take the step with the smallest `heldout_loss`, not the smallest `loss`.",
            ),
            Property(
                says="A held-out loss that rose should count as a positive cost.",
                holds=lambda a, f: is_not(a[1], -f.lost, f.lost),
                hint="The loss at the end minus the lowest one.",
            ),
            Property(
                says="The cost should be between two held-out losses.",
                holds=lambda a, f: near(a[1], f.lost),
                hint="Take `heldout_loss` of the last measurement and of the lowest one.",
            ),
        ),
        deepens="While the held-out loss rose, the training loss fell all the time: from the "
        "training loss alone, nobody could have known.",
    ),
    Exercise(
        id="03.4",
        asks="(usual, ours): share of a weight that decay takes away, at 0.01 and as we set it",
        given=("run",),
        facts=_decay,
        properties=(
            Property(
                says="The answer should be two numbers.",
                holds=lambda a, _: len(a) == 2 and is_number(a[0]) and is_number(a[1]),
                hint="First for a decay of 0.01, then for `run.settings.weight_decay`.",
            ),
            Property(
                says="Both should be shares between 0 and 1 of what is taken away.",
                holds=lambda a, _: 0 < a[0] < 1 and 0 < a[1] < 1,
                hint="Not percent, and nothing above 1.",
            ),
            Property(
                says="The first share should be small.",
                holds=lambda a, f: a[0] < 0.5 or f.taken(USUAL_DECAY) >= 0.5,
                hint="You may have handed in what is left, and not what is taken.",
            ),
            Property(
                says="All steps should be counted.",
                holds=lambda a, f: _close(a[0], f.taken(USUAL_DECAY)),
                hint="Each step multiplies a weight by 1 - learning_rate × 0.01. Multiply over all "
                "steps of `run.steps`.",
            ),
            Property(
                says="The second share should be of our own decay.",
                holds=lambda a, f: _close(a[1], f.taken(f.decay)),
                hint="The same product, with `run.settings.weight_decay`.",
            ),
        ),
        deepens="Decay acts through learning rate × decay × steps, so a value that is right for a "
        "hundred thousand steps does next to nothing in a few dozen.",
    ),
    Exercise(
        id="03.5",
        asks="(lost, every): steps the kill cost, and a save_every that risks at most a minute",
        given=("whole", "killed", "saved"),
        facts=_kill,
        properties=(
            Property(
                says="The answer should be two whole numbers.",
                holds=lambda a, _: len(a) == 2 and is_whole(a[0]) and is_whole(a[1]),
                hint="Both are counts of steps.",
            ),
            Property(
                says="The lost steps should be those after the checkpoint.",
                holds=lambda a, f: a[0] == f.killed - f.saved,
                hint="They were done (`killed[-1].step`) and are not in the checkpoint (`saved`).",
            ),
            Property(
                says="With so many steps between checkpoints, at most a minute should be lost.",
                holds=lambda a, f: a[1] * f.per_step_s <= SPARE_S,
                hint="Seconds per step are `whole[-1].seconds / len(whole)`.",
            ),
            Property(
                says="It should not save more often than that asks for.",
                holds=lambda a, f: a[1] == f.every,
                hint="More steps fit into a minute.",
            ),
        ),
        deepens="A checkpoint costs time as well, so the question is what an hour of work is worth "
        "to you; with long steps every few of them, with short ones every few hundred.",
    ),
)
