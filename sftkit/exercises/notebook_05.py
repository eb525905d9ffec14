"""The exercises of notebook 05."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near


@dataclass(frozen=True, kw_only=True)
class _Step:
    busiest: int
    average: float
    whole: int
    contiguous: int


def _step(given: Mapping[str, Any]) -> _Step:
    lengths, processes = [int(length) for length in given["lengths"]], int(given["processes"])
    hands = [
        given["deal"](lengths, process=process, processes=processes, micro_batches=1)[0]
        for process in range(processes)
    ]
    size = -(-len(lengths) // processes)
    return _Step(
        busiest=max(sum(lengths[place] for place in hand) for hand in hands),
        average=sum(lengths) / processes,
        whole=sum(lengths),
        contiguous=max(sum(lengths[at : at + size]) for at in range(0, len(lengths), size)),
    )


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    right: float


def _tokens(given: Mapping[str, Any]) -> _Tokens:
    first, second = given["tokens"]
    if first == second:
        raise SftkitError("Both processes have as many supervised tokens; no token counts more.")
    return _Tokens(right=second / first)


@dataclass(frozen=True, kw_only=True)
class _Speeds:
    against_one: float
    against_both: float


def _speeds(given: Mapping[str, Any]) -> _Speeds:
    gains = given["gains"]
    return _Speeds(against_one=gains[2, 1], against_both=gains[2, 1] / gains[1, 2])


@dataclass(frozen=True, kw_only=True)
class _Fits:
    names: tuple[str, ...]
    fitting: Mapping[float, tuple[str, ...]]
    least: Mapping[float, frozenset[str]]


def _fits(given: Mapping[str, Any]) -> _Fits:
    needed, budgets = given["needed"], tuple(given["budgets"])
    fitting = {
        budget: tuple(name for name, one in needed.items() if one.high <= budget)
        for budget in budgets
    }
    if not all(fitting.values()):
        raise SftkitError("No strategy fits into the smallest of these GPUs.")
    # What splits less comes first; strategies that split the same are equally right.
    least = {
        budget: frozenset(n for n in names if needed[n].total == needed[names[0]].total)
        for budget, names in fitting.items()
    }
    return _Fits(names=tuple(needed), fitting=fitting, least=least)


EXERCISES = (
    Exercise(
        id="05.1",
        asks="tokens of the busiest of the processes",
        given=("lengths", "processes", "deal"),
        facts=_step,
        properties=(
            Property(
                says="The answer should be a whole number of tokens.",
                holds=lambda a, _: is_whole(a),
                hint="Add up the lengths of one process's rows.",
            ),
            Property(
                says="The step should be divided.",
                holds=lambda a, f: a < f.whole,
                hint="That is the whole step. Deal it first, with `processes` as asked.",
            ),
            Property(
                says="The busiest process should have at least an even share.",
                holds=lambda a, f: a >= f.average,
                hint="No deal can give every process less than the average. Take the largest of "
                "the sums.",
            ),
            Property(
                says="Rows should be dealt there and back, not cut into neighbours.",
                holds=lambda a, f: is_not(a, f.contiguous, f.busiest),
                hint="Call `deal` once for each process, with process=0, 1 and so on.",
            ),
            Property(
                says="The sum should be that of the busiest process.",
                holds=lambda a, f: a == f.busiest,
                hint="`deal(...)[0]` holds places in the step; `lengths[place]` are tokens. Is it "
                "dealt to the number of processes that was asked for?",
            ),
        ),
        deepens="All wait for the busiest, at every step: a deal that is uneven by a tenth wastes "
        "about a tenth of every other process.",
    ),
    Exercise(
        id="05.2",
        asks="how many times a token of process 0 counts, compared with one of process 1",
        given=("tokens",),
        facts=_tokens,
        properties=(
            Property(
                says="The answer should be a number above 0.",
                holds=lambda a, _: is_number(a) and a > 0,
                hint="A token that counts twice as much as another gives 2.",
            ),
            Property(
                says="The mean of means should treat the tokens differently.",
                holds=lambda a, f: is_not(a, 1.0, f.right),
                hint="In the mean of means each *process* counts the same. How much of it is one "
                "token?",
            ),
            Property(
                says="A token in a small crowd should count more, not less.",
                holds=lambda a, f: is_not(a, 1 / f.right, f.right),
                hint="A process's mean gives each of its n tokens the weight 1/n. Which of the two "
                "has the larger weight?",
            ),
            Property(
                says="The weights should follow from the counts of tokens.",
                holds=lambda a, f: near(a, f.right),
                hint="Divide 1/n of process 0 by 1/n of process 1. Give at least three digits.",
            ),
        ),
        deepens="The same mistake lurks in gradient accumulation on one GPU: micro-batches with "
        "unlike counts of supervised tokens must not be averaged either.",
    ),
    Exercise(
        id="05.3",
        asks="(times as fast as 1 process on 1 core, times as fast as 1 process on 2 cores)",
        given=("gains",),
        facts=_speeds,
        properties=(
            Property(
                says="The answer should be a pair of numbers above 0.",
                holds=lambda a, _: len(a) == 2 and all(is_number(x) and x > 0 for x in a),
                hint="Two ratios, both of the speed of two processes.",
            ),
            Property(
                says="Speeds should be divided, not subtracted or turned round.",
                holds=lambda a, f: (
                    is_not(a[0], 1 / f.against_one, f.against_one) and not near(a[0], 0)
                ),
                hint="How many times as fast: new speed over old speed.",
            ),
            Property(
                says="The first comparison should be with one core.",
                holds=lambda a, f: near(a[0], f.against_one),
                hint="`gains[2, 1]` is two processes with a core each, already compared with one "
                "process on one core. Give at least three digits.",
            ),
            Property(
                says="The second comparison should be with one process that uses both cores.",
                holds=lambda a, f: near(a[1], f.against_both),
                hint="The same two processes, over `gains[1, 2]`.",
            ),
        ),
        deepens="Whoever reports the first number alone sells cores as processes. With GPUs there "
        "is no such choice: one process cannot train on two of them at once.",
    ),
    Exercise(
        id="05.4",
        asks="(strategy for GPUs of the first size, strategy for those of the second)",
        given=("needed", "budgets"),
        facts=_fits,
        properties=(
            Property(
                says="The answer should be two names of `needed`.",
                holds=lambda a, f: len(a) == 2 and all(name in f.names for name in a),
                hint="Give two names as they are printed, the larger GPU first.",
            ),
            Property(
                says="What is chosen should fit.",
                holds=lambda a, f: all(
                    n in f.fitting[b] for n, b in zip(a, f.fitting, strict=True)
                ),
                hint="Compare `needed[name].high` with the size of the GPU, both in bytes.",
            ),
            Property(
                says="Nothing that splits less should fit.",
                holds=lambda a, f: all(n in f.least[b] for n, b in zip(a, f.least, strict=True)),
                hint="Something earlier in the list fits as well, and it sends fewer bytes.",
            ),
        ),
        deepens="What splits the weights brings them together again in every block, forward and "
        "backward: it pays for memory with traffic between the GPUs.",
    ),
    Exercise(
        id="05.5",
        asks="the plan of the last of three machines with four GPUs each",
        given=("address",),
        facts=lambda given: str(given["address"]),
        properties=(
            Property(
                says="The answer should be a plan.",
                holds=lambda a, _: is_whole(a.processes) and is_whole(a.machines),
                hint="Hand in what `plan_launch(...)` gives.",
            ),
            Property(
                says="There should be three machines.",
                holds=lambda a, _: a.machines == 3,
                hint="Give machines=3.",
            ),
            Property(
                says="`processes` should count those of all machines.",
                holds=lambda a, _: a.processes == 12,
                hint="Accelerate counts all processes together: four on each of the machines.",
            ),
            Property(
                says="It should be the plan of the last machine.",
                holds=lambda a, _: a.machine_rank == 2,
                hint="Machines are counted from 0.",
            ),
            Property(
                says="All machines should meet at the same address.",
                holds=lambda a, f: a.main_address == f,
                hint="The address is that of the *first* machine, on every machine.",
            ),
        ),
        deepens="The effective batch did not grow: the same steps are dealt to twelve. With few "
        "rows in a step some GPUs would idle, so more GPUs want larger batches.",
    ),
)
