"""The exercises of notebook 06."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    fewest: int
    enough: frozenset[int]
    offered: frozenset[int]


def _sizes(given: Mapping[str, Any]) -> _Sizes:
    gains = {int(items): gain for items, gain in given["smallest"].items()}
    wanted = float(given["wanted"])
    enough = [items for items, gain in gains.items() if gain is not None and gain <= wanted]
    if not enough:
        raise SftkitError(f"No test in the table can see a gain of {wanted:g}. Offer a larger one.")
    return _Sizes(fewest=min(enough), enough=frozenset(enough), offered=frozenset(gains))


@dataclass(frozen=True, kw_only=True)
class _Losses:
    nats: float
    tokens: int
    means: tuple[float, ...]

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def of_means(self) -> float:
        return math.exp(sum(self.means) / len(self.means))

    @property
    def mean_of_each(self) -> float:
        return sum(map(math.exp, self.means)) / len(self.means)


def _losses(given: Mapping[str, Any]) -> _Losses:
    scores = given["scores"]
    if not scores:
        raise SftkitError("There are no scored answers. Ask at least one question.")
    return _Losses(
        nats=sum(float(score.nats) for score in scores),
        tokens=sum(int(score.tokens) for score in scores),
        means=tuple(float(score.nats) / int(score.tokens) for score in scores),
    )


@dataclass(frozen=True, kw_only=True)
class _Flips:
    to_right: int
    to_wrong: int
    right_after: int
    right_before: int

    @property
    def p_value(self) -> float:
        flips, fewer = self.to_right + self.to_wrong, min(self.to_right, self.to_wrong)
        tail = sum(math.comb(flips, count) for count in range(fewer + 1)) / 2**flips
        return min(1.0, 2 * tail)


def _flips(given: Mapping[str, Any]) -> _Flips:
    pairs = [
        (bool(one), bool(two)) for one, two in zip(given["rival"], given["tuned"], strict=True)
    ]
    return _Flips(
        to_right=pairs.count((False, True)),
        to_wrong=pairs.count((True, False)),
        right_after=sum(two for _, two in pairs),
        right_before=sum(one for one, _ in pairs),
    )


@dataclass(frozen=True, kw_only=True)
class _Rivals:
    before: Mapping[str, float]
    gained: Mapping[str, bool]

    @property
    def strongest(self) -> frozenset[str]:
        top = max(self.before.values())
        return frozenset(name for name, value in self.before.items() if near(value, top))


def _rivals(given: Mapping[str, Any]) -> _Rivals:
    measure = given["measure"]
    changes = {"base": measure.change, **measure.baselines}
    return _Rivals(
        before={name: float(change.before) for name, change in changes.items()},
        gained={name: change.ci95[0] > 0 for name, change in changes.items()},
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    not_ahead: int
    behind: int
    same_seed: int
    pairs: int


def _pairs(given: Mapping[str, Any]) -> _Pairs:
    fewer, more = ([float(share) for share in given[name]] for name in ("fewer", "more"))
    if not fewer or len(fewer) != len(more):
        raise SftkitError("Both sizes need the same seeds, and at least one. Train them again.")
    gains = [after - before for before in fewer for after in more]
    return _Pairs(
        not_ahead=sum(gain <= 1e-9 for gain in gains),
        behind=sum(gain < -1e-9 for gain in gains),
        same_seed=sum(b - a <= 1e-9 for a, b in zip(fewer, more, strict=True)),
        pairs=len(gains),
    )


def _is_count(answer: Any, _: Any) -> bool:
    return is_whole(answer) and answer >= 0


EXERCISES = (
    Exercise(
        id="06.1",
        asks="the fewest questions of the table with which the wanted gain can be seen",
        given=("smallest", "wanted"),
        facts=_sizes,
        properties=(
            Property(
                says="The answer should be one of the numbers of questions in the table.",
                holds=lambda a, f: is_whole(a) and int(a) in f.offered,
                hint="The keys of `smallest` are numbers of questions; the answer is one of them.",
            ),
            Property(
                says="A test of that size should be able to see the gain.",
                holds=lambda a, f: int(a) in f.enough,
                hint="Its smallest gain must not be larger than the wanted one. `None` means that "
                "no gain at all can be seen.",
            ),
            Property(
                says="No smaller test in the table should be able to see it.",
                holds=lambda a, f: int(a) == f.fewest,
                hint="There is a smaller one that can. Go through the table from the top.",
            ),
        ),
        deepens="Halve the gain that you want to see: you need three to four times the questions. "
        "Ask this before you write the test, not after.",
    ),
    Exercise(
        id="06.2",
        asks="the perplexity of all answers together, one number",
        given=("scores",),
        facts=_losses,
        properties=(
            Property(
                says="The answer should be a number of 1 or more.",
                holds=lambda a, _: is_number(a) and float(a) >= 1 - 1e-9,
                hint="Perplexity is math.exp of a loss in nats per token.",
            ),
            Property(
                says="It should not be the loss itself.",
                holds=lambda a, f: is_not(a, f.loss, f.perplexity),
                hint="That is the loss. Perplexity is math.exp of it.",
            ),
            Property(
                says="Long answers should weigh more than short ones.",
                holds=lambda a, f: is_not(a, f.of_means, f.perplexity),
                hint="You averaged over answers. Add up all nats, add up all tokens, and divide.",
            ),
            Property(
                says="The mean should be taken before the exponential.",
                holds=lambda a, f: is_not(a, f.mean_of_each, f.perplexity),
                hint="You averaged perplexities; one bad answer then outweighs all others.",
            ),
            Property(
                says="It should match the scores.",
                holds=lambda a, f: math.isclose(float(a), f.perplexity, rel_tol=2e-3),
                hint="math.exp(sum of nats / sum of tokens).",
            ),
        ),
        deepens="Perplexities of two models can only be compared if both cut text into the same "
        "tokens. Base and fine-tune do; two different models often do not.",
    ),
    Exercise(
        id="06.3",
        asks="(turned right, turned wrong, McNemar's p-value)",
        given=("rival", "tuned"),
        facts=_flips,
        properties=(
            Property(
                says="The answer should be two counts and a p-value.",
                holds=lambda a, f: (
                    len(a) == 3
                    and _is_count(a[0], f)
                    and _is_count(a[1], f)
                    and is_number(a[2])
                    and 0 <= float(a[2]) <= 1
                ),
                hint="Such as (5, 2, 0.45).",
            ),
            Property(
                says="Questions that both answer right should not be counted.",
                holds=lambda a, f: (
                    (int(a[0]), int(a[1])) == (f.to_right, f.to_wrong)
                    or (int(a[0]), int(a[1])) != (f.right_after, f.right_before)
                ),
                hint="You counted all right answers of each. Count pairs that differ.",
            ),
            Property(
                says="The two counts should match the answers.",
                holds=lambda a, f: (int(a[0]), int(a[1])) == (f.to_right, f.to_wrong),
                hint="First: wrong in `rival`, right in `tuned`. Second: the reverse.",
            ),
            Property(
                says="The p-value should be McNemar's.",
                holds=lambda a, f: near(a[2], f.p_value),
                hint="mcnemar_exact takes the two counts of flips, in either order.",
            ),
        ),
        deepens="Only questions on which the two differ say anything about which is better. A "
        "hundred that both get right are a hundred that do not help.",
    ),
    Exercise(
        id="06.4",
        asks="(name of the strongest rival, whether the tuned model beats it beyond chance)",
        given=("measure",),
        facts=_rivals,
        properties=(
            Property(
                says="The answer should be the name of a rival, and True or False.",
                holds=lambda a, f: len(a) == 2 and a[0] in f.before and bool(a[1]) == a[1],
                hint='Names are "base" and the keys of measure.baselines.',
            ),
            Property(
                says="No other rival should be stronger.",
                holds=lambda a, f: a[0] in f.strongest,
                hint="Compare `before` of measure.change and of each of measure.baselines.",
            ),
            Property(
                says="Beyond chance should mean that the interval leaves out zero.",
                holds=lambda a, f: bool(a[1]) == f.gained[a[0]],
                hint="Look at ci95 of that rival's change: is its lower end above 0?",
            ),
        ),
        deepens="A gain over the untouched base is a gain over nobody's real alternative. The "
        "strongest rival is the one your reader would use instead.",
    ),
    Exercise(
        id="06.5",
        asks="in how many pairs of one seed each the larger set is not ahead",
        given=("fewer", "more"),
        facts=_pairs,
        properties=(
            Property(
                says="The answer should be a whole number, at most the number of pairs.",
                holds=lambda a, f: _is_count(a, f) and int(a) <= f.pairs,
                hint="Every seed of one size meets every seed of the other.",
            ),
            Property(
                says="All pairs should be counted, not only those of the same seed.",
                holds=lambda a, f: int(a) == f.not_ahead or int(a) != f.same_seed,
                hint="Two people who train once each need not use the same seed. Two loops.",
            ),
            Property(
                says="A tie should count as not ahead.",
                holds=lambda a, f: int(a) == f.not_ahead or int(a) != f.behind,
                hint="Count pairs in which `more` is smaller or equal.",
            ),
            Property(
                says="The number should match the shares.",
                holds=lambda a, f: int(a) == f.not_ahead,
                hint="For each share in `fewer` and each in `more`: is the second one not larger?",
            ),
        ),
        deepens="Whoever trains once sees one of these pairs and does not know which. That is why "
        "a claim about data, or about any setting, needs several seeds.",
    ),
)
