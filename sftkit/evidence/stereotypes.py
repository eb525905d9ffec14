"""How much likelier a language model holds a stereotype than its opposite, before and after tuning.

Pairs come from the catalog's bias sets (`catalog.bias_rows`). They are American and dated, and
words differ in frequency too: what such a gap says of a single model is disputed (Blodgett et al.
2021). What tuning moved on the very same pairs is not open to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.errors import DataError
from sftkit.evidence.choice import ChoiceScore, Prompt, score_choices
from sftkit.evidence.fairness import paired_gap
from sftkit.evidence_records import FairnessGap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class BiasTest:
    """Pairs of sentences about people, ready as tokens.

    Attributes:
        names: Bias set of each pair.
        groups: Group of each pair in its set: the people or the occupation it speaks of.
        prompts: What both sentences begin with, and how each goes on; the stereotype first.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()


def make_bias_test(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    items: int,
) -> BiasTest:
    """Turn a catalog's bias rows into pairs to score.

    Args:
        rows: Rows by the name of their set: stereoset, wino or crows-pairs.
        tokenizer: The model's tokenizer.
        items: Pairs per set, at most; evenly spaced over the file.
    """
    names, groups, prompts = [], [], []
    for name, given in rows.items():
        count = min(items, len(given))
        for row in (given[place * len(given) // count] for place in range(count)):
            names.append(name)
            groups.append(str(row["group"]))
            prompts.append(pair_prompt(*_sentences(row), tokenizer))
    return BiasTest(names=tuple(names), groups=tuple(groups), prompts=tuple(prompts))


def _sentences(row: Mapping[str, Any]) -> tuple[str, str]:
    if "first" in row:
        return str(row["first"]), str(row["second"])
    pair = (str(row["stereotype"]), str(row["anti_stereotype"]))
    if row.get("form") == "intersentence":
        return f"{row['context']} {pair[0]}", f"{row['context']} {pair[1]}"
    return pair


def pair_prompt(first: str, second: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Encode two texts as one prompt: the tokens both begin with, then how each goes on.

    What they share is as likely in both, so it cancels out. A token that starts a text stands
    before everything, so that the first word is scored too.

    Raises:
        DataError: The tokenizer has no token to start a text with, or the texts are the same.
    """
    start = next((n for n in (tokenizer.bos_token_id, tokenizer.eos_token_id) if n is not None), -1)
    coded: list[list[int]] = [
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (first, second)
    ]
    if start < 0 or coded[0] == coded[1]:
        raise DataError(
            f"No pair to compare in {first[:60]!r}: both texts have the same tokens, or the "
            "tokenizer has neither a bos_token nor an eos_token."
        )
    most = min(map(len, coded)) - 1  # each has to go on with a token at least
    same = next((n for n in range(most) if coded[0][n] != coded[1][n]), most)
    return Prompt(
        prefix=(int(start), *coded[0][:same]),
        options=tuple(tuple(ids[same:]) for ids in coded),
        characters=(len(first), len(second)),
    )


def score_bias(model: Any, test: BiasTest) -> tuple[ChoiceScore, ...]:
    """Score both sentences of every pair."""
    return score_choices(model, test.prompts) if test.prompts else ()


def compare_bias(
    test: BiasTest,
    before: Sequence[ChoiceScore],
    after: Sequence[ChoiceScore],
    *,
    resamples: int = 4000,
) -> tuple[FairnessGap, ...]:
    """Measure how much likelier stereotypes are, and what tuning changed about it.

    A pair's margin is the log-probability of the stereotype minus that of the other sentence, nats
    per token after what both begin with.

    Returns:
        For stereoset and wino the share of pairs whose stereotype is likelier, minus one half (the
        ss of Nadeem et al. 2021, with 0 for none), of the tuned model with the base model's
        beside; and how much tuning moved the mean margin. For crows-pairs, whose file does not say
        which sentence is the stereotype, how much tuning moved the mean size of the margin.
    """
    gaps: list[FairnessGap] = []
    was, now = _margins(before), _margins(after)
    for name in dict.fromkeys(test.names):
        chosen = np.array([one == name for one in test.names])
        own = [group for group, is_in in zip(test.groups, chosen, strict=True) if is_in]
        base, tuned = was[chosen], now[chosen]
        shared: dict[str, Any] = {"attribute": name, "items": len(own)}
        unit = "nats per token"
        if name == "crows-pairs":
            sizes = np.abs(tuned) - np.abs(base)
            gap = paired_gap(sizes, own, resamples)
            gaps.append(
                FairnessGap(
                    name="size of the margin, tuned minus base", groups=("base", "tuned"),
                    unit=unit, **shared, **gap,
                )
            )  # fmt: skip
            continue
        sides = ("anti-stereotype", "stereotype")
        halves = [np.sign(margin) / 2 for margin in (base, tuned)]
        gaps.append(
            FairnessGap(
                name="stereotype likelier", groups=sides, base=float(halves[0].mean()),
                **shared, **paired_gap(halves[1], own, resamples),
            )
        )  # fmt: skip
        gaps.append(
            FairnessGap(
                name="margin, tuned minus base", groups=("base", "tuned"), unit=unit,
                **shared, **paired_gap(tuned - base, own, resamples),
            )
        )  # fmt: skip
    return tuple(gaps)


def _margins(scores: Sequence[ChoiceScore]) -> Array:
    return np.array([score.per_token(0) - score.per_token(1) for score in scores])
