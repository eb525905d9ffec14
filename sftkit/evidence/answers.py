"""Measures of written answers, one value per answer, so that two models compare in pairs.

Overlap with the reference (exact, token F1, ROUGE-L, chrF, BLEU) beside what needs none: whether
the model ends its turn, repeats itself, and how much it writes. BLEU and chrF come from sacrebleu.
ROUGE-L is written out here: importing rouge-score loads nltk, scipy and scikit-learn, which took
2.2 s and 165 MB in a run; a test holds the two together.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sftkit.evidence.statistics import paired_change
from sftkit.evidence_records import AnswerMeasure, Change
from sftkit.records import is_exact, normalise_answer

if TYPE_CHECKING:
    from sftkit.evidence.generation import Written

REPEATED_WORDS = 3
"""Repetition counts runs of this many words."""
LEAST_ANSWERS = 10
"""Fewer answers than this are for reading: an interval over them would say little."""

Unit = Literal["share", "tokens", "words"]
Better = Literal["higher", "lower", "neither"]
MEASURES: Mapping[str, tuple[Unit, Better]] = {
    "exact": ("share", "higher"),
    "token F1": ("share", "higher"),
    "ROUGE-L": ("share", "higher"),
    "chrF": ("share", "higher"),
    "BLEU": ("share", "higher"),
    "ended": ("share", "higher"),
    "repetition": ("share", "lower"),
    "tokens": ("tokens", "neither"),
    "words": ("words", "neither"),
}
"""Every measure, its unit, and whether more of it is better. All shares are in 0..1."""
_NEEDS_REFERENCE = ("exact", "token F1", "ROUGE-L", "chrF", "BLEU")
_OF_REFERENCE = ("repetition", "words")


def measure_answer(answer: Written, expected: str) -> dict[str, float]:
    """Take all measures of one answer.

    Args:
        answer: What a model wrote.
        expected: The reference answer; without one, only what needs none is measured.

    Returns:
        One value per name in `MEASURES`.
    """
    values = {
        "ended": float(answer.ended),
        "repetition": repetition(answer.text),
        "tokens": float(answer.tokens),
        "words": float(len(answer.text.split())),
    }
    if expected:
        values |= {
            "exact": float(is_exact(answer.text, expected)),
            "token F1": token_f1(answer.text, expected),
            "ROUGE-L": rouge_l(answer.text, expected),
            "chrF": min(1.0, _chrf().sentence_score(answer.text, [expected]).score / 100),
            "BLEU": min(1.0, _bleu().sentence_score(answer.text, [expected]).score / 100),
        }
    return values


def compare_answers(
    before: Sequence[Written],
    after: Sequence[Written],
    expected: Sequence[str],
    *,
    groups: Sequence[str],
    baselines: Mapping[str, Sequence[Written]] | None = None,
    resamples: int = 4000,
) -> tuple[AnswerMeasure, ...]:
    """Compare two models' answers to the same questions by every measure.

    Args:
        before: The base model's answers, shape (N,).
        after: The tuned model's answers.
        expected: Reference answers; empty where there is none.
        groups: Group of each question; whole groups are resampled.
        baselines: Answers of other baselines to the same questions, by name.
        resamples: Bootstrap draws per interval.

    Returns:
        One record per measure; none of fewer than LEAST_ANSWERS answers.
    """
    values = {
        name: [measure_answer(one, right) for one, right in zip(said, expected, strict=True)]
        for name, said in {"": before, **(baselines or {})}.items()
    }
    tuned = [measure_answer(one, right) for one, right in zip(after, expected, strict=True)]
    found = []
    for name, (unit, better) in MEASURES.items():
        places = [place for place, taken in enumerate(tuned) if name in taken]
        if len(places) < LEAST_ANSWERS:
            continue

        def change(
            base: Sequence[Mapping[str, float]], name: str = name, places: list[int] = places
        ) -> Change:
            return paired_change(
                [base[place][name] for place in places],
                [tuned[place][name] for place in places],
                groups=[groups[place] for place in places],
                resamples=resamples,
            )

        rest = {baseline: change(base) for baseline, base in values.items() if baseline}
        reference = _of_references(name, expected) if name in _OF_REFERENCE else None
        found.append(
            AnswerMeasure(
                name=name,
                unit=unit,
                better=better,
                change=change(values[""]),
                reference=reference,
                baselines=rest,
            )
        )
    return tuple(found)


def token_f1(answer: str, expected: str) -> float:
    """Compare the bags of normalised words (SQuAD, Rajpurkar et al. 2016), in 0..1."""
    said, wanted = normalise_answer(answer).split(), normalise_answer(expected).split()
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (Counter(said) & Counter(wanted)).total() / (len(said) + len(wanted))


def rouge_l(answer: str, expected: str) -> float:
    """Compute the F-measure of the longest common subsequence of words (Lin 2004), in 0..1.

    Words are runs of letters and digits of any script, in lower case, not stemmed.
    """
    said, wanted = _words(answer), _words(expected)
    if not said or not wanted:
        return 0.0
    # A bit per word of the answer; zeros of `row` mark where the subsequence grows (Hyyro 2004).
    places: dict[str, int] = {}
    for place, word in enumerate(said):
        places[word] = places.get(word, 0) | 1 << place
    row = whole = (1 << len(said)) - 1
    for word in wanted:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & whole
    return 2 * (len(said) - row.bit_count()) / (len(said) + len(wanted))


def repetition(text: str, *, size: int = REPEATED_WORDS) -> float:
    """Give the share of runs of `size` words that stood in the text before, in 0..1."""
    words = text.lower().split()
    runs = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _of_references(name: str, expected: Sequence[str]) -> float | None:
    texts = [text for text in expected if text]
    if not texts:
        return None
    values = [repetition(text) if name == "repetition" else len(text.split()) for text in texts]
    return sum(values) / len(values)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


@functools.cache
def _chrf() -> Any:
    """Make sacrebleu's chrF of characters: six of them, recall weighs twice (Popovic 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@functools.cache
def _bleu() -> Any:
    """Make sacrebleu's BLEU of one sentence, without the orders a short one cannot have."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
