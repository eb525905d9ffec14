"""A clinic of broken runs: the patients as a table, the signs that give them away, what is shown.

`clinic_runs.admit` makes the runs. Here is what is known of them: for every fault what was broken,
by which sign it is found, and how it is cured. A sign compares a patient's chart with that of the
healthy run, so it needs no threshold that a model would have to be told of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sftkit.records import Answer, Step
from sftkit.show import MaskView

HEALTHY, SWAPPED = "healthy", "swapped labels"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What was seen of one run. None where a run of its kind has no such number.

    Attributes:
        fault: What is wrong with it; sealed until somebody asks.
        steps: Every step of the training.
        log: Loss of fresh rows before and after training, as the training wrote it down.
        here: The same loss where the model is used: of the base, and of the model.
        example: A training row with what is learned from; a text and its label in words.
        ends_learned: Whether the end of the answer is learned, and how many tokens are.
        asked: A training question as the model is asked it.
        asked_as_trained: Whether the training row begins just so.
        answers: Two answers to read.
        tested: Right answers to tested questions, and their number.
        fresh: The same for fresh questions, which no report is about.
        test_loss: Loss of the tested rows.
        ended: Answers that ended, and answers.
        unmoved: Tested rows whose loss is the base's to the last bit, and tested rows.
        drift: Change of the loss on general text, in nats per token.
        overlap: Tested rows that stand in training, and tested rows.
        confusion: Right classes by said classes.
        classes: Their names.
        refusal: What sftkit said of the fault; empty if it let it pass.
        events: What the training reported on its way.
    """

    fault: str
    steps: tuple[Step, ...]
    log: tuple[float, float]
    here: tuple[float | None, float]
    example: MaskView | str
    answers: tuple[Answer, ...]
    tested: tuple[int, int]
    test_loss: float
    overlap: tuple[int, int]
    ends_learned: tuple[bool, int] | None = None
    asked: str = ""
    asked_as_trained: bool | None = None
    fresh: tuple[int, int] | None = None
    ended: tuple[int, int] | None = None
    unmoved: tuple[int, int] | None = None
    drift: float | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    classes: tuple[str, ...] = ()
    refusal: str = ""
    events: tuple[str, ...] = ()

    @property
    def last_loss(self) -> float:
        """Mean training loss of the last three steps."""
        ends = [step.loss for step in self.steps[-3:]]
        return sum(ends) / len(ends)


# --- Signs -----------------------------------------------------------------------------------

Sign = Callable[[Chart, Chart], bool]


def _loss_is_zero(chart: Chart, healthy: Chart) -> bool:
    return all(step.loss == 0 for step in chart.steps)


def _loss_climbs(chart: Chart, healthy: Chart) -> bool:
    return not chart.last_loss < chart.steps[0].loss and not _loss_is_zero(chart, healthy)


def _learned_by_heart(chart: Chart, healthy: Chart) -> bool:
    """As low a training loss as the healthy run's, and less than half of its gain on fresh rows."""
    halfway = (healthy.log[0] + healthy.log[1]) / 2
    return 0 < chart.last_loss <= healthy.last_loss and chart.log[1] > halfway


def _starts_elsewhere(chart: Chart, healthy: Chart) -> bool:
    """The base of the training and the base that is used differ by a twentieth of their loss.

    The same base held in 4 bits differed by 2 % and 3 %, one into which an adapter had been merged
    by 42 % and 49 % (SmolLM2-135M).
    """
    return chart.here[0] is not None and abs(chart.log[0] - chart.here[0]) > 0.05 * chart.here[0]


def _ends_elsewhere(chart: Chart, healthy: Chart) -> bool:
    """The training wrote down another loss than is measured where the model is used."""
    gained = abs(healthy.log[0] - healthy.log[1])
    return abs(chart.log[1] - chart.here[1]) > 0.1 * gained


def _nothing_is_learned_from(chart: Chart, healthy: Chart) -> bool:
    return chart.ends_learned is not None and chart.ends_learned[1] == 0


def _end_is_not_learned(chart: Chart, healthy: Chart) -> bool:
    return (
        chart.ends_learned is not None and chart.ends_learned[1] > 0 and not chart.ends_learned[0]
    )


def _asked_otherwise(chart: Chart, healthy: Chart) -> bool:
    return chart.asked_as_trained is False


def _answers_are_worse(chart: Chart, healthy: Chart) -> bool:
    """Fewer than half as many right answers as the healthy run, in questions nobody reports on."""
    ours, theirs = (one.fresh or one.tested for one in (chart, healthy))
    return ours[0] * theirs[1] < theirs[0] * ours[1] / 2


def _answers_do_not_end(chart: Chart, healthy: Chart) -> bool:
    return (
        chart.ended is not None
        and healthy.ended is not None
        and chart.ended[0] < healthy.ended[0] / 2
    )


def _nothing_moved(chart: Chart, healthy: Chart) -> bool:
    return chart.unmoved is not None and chart.unmoved[0] == chart.unmoved[1]


def _general_text_is_lost(chart: Chart, healthy: Chart) -> bool:
    """General text costs a nat per token more than it does after the healthy run."""
    return None not in (chart.drift, healthy.drift) and chart.drift - healthy.drift > 1  # type: ignore[operator]


def _test_was_trained(chart: Chart, healthy: Chart) -> bool:
    return chart.overlap[0] > healthy.overlap[0]


def _classes_are_exchanged(chart: Chart, healthy: Chart) -> bool:
    """More items of two classes were called by the other's name than by their own."""
    table = chart.confusion or ()
    return any(
        table[a][b] + table[b][a] > table[a][a] + table[b][b] and table[a][b] and table[b][a]
        for a in range(len(table))
        for b in range(a)
    )


SIGNS: Mapping[str, Sign] = {
    "loss is 0": _loss_is_zero,
    "loss climbs": _loss_climbs,
    "learned by heart": _learned_by_heart,
    "starts elsewhere": _starts_elsewhere,
    "ends elsewhere": _ends_elsewhere,
    "nothing learned from": _nothing_is_learned_from,
    "end not learned": _end_is_not_learned,
    "asked otherwise": _asked_otherwise,
    "wrong answers": _answers_are_worse,
    "answers do not end": _answers_do_not_end,
    "classes exchanged": _classes_are_exchanged,
    "no delta at all": _nothing_moved,
    "general text lost": _general_text_is_lost,
    "test in training": _test_was_trained,
}
"""Every sign by name, in the order: training curve, mask, answers, deltas, audit."""
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "training curve": ("loss is 0", "loss climbs", "learned by heart"),
    "log against use": ("starts elsewhere", "ends elsewhere"),
    "mask": ("nothing learned from", "end not learned", "asked otherwise"),
    "answers": ("wrong answers", "answers do not end", "classes exchanged"),
    "deltas": ("no delta at all", "general text lost"),
    "audit": ("test in training",),
}
"""What one has to look at to see a sign."""


def find_signs(chart: Chart, healthy: Chart) -> tuple[str, ...]:
    """Name the signs by which a chart differs from the healthy one."""
    return tuple(name for name, sign in SIGNS.items() if sign(chart, healthy))


# --- Patients --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One fault.

    Attributes:
        broken: What was done, and how it happens.
        sign: The sign that tells it from the faults further down the table.
        look: Where to look, for who is stuck; it does not name the fault.
        telling: How one finds it.
        cure: What helps.
    """

    broken: str
    sign: str
    look: str
    telling: str
    cure: str


PATIENTS: Mapping[str, Patient] = {
    "all masked": Patient(
        broken="Every label was masked, as happens when a script looks for an answer marker that "
        "this template does not write.",
        sign="nothing learned from",
        look="Such a round loss is suspicious. How many tokens of the training row are "
        "learned from?",
        telling="A loss of exactly 0 in every step is no success: a mean over no token was taken "
        "for 0. The mask shows it before the first step.",
        cure="Look at one masked example before every training. sftkit finds the answer by "
        "rendering, and refuses rows that teach nothing.",
    ),
    "pad is eos": Patient(
        broken="Padding was masked by its token id. In this tokenizer the same id ends every "
        "answer, so the end of every answer was masked, too.",
        sign="end not learned",
        look="Look at the very end of the answer in the training row: is its last control "
        "token learned, or only read?",
        telling="The curve is fine, because validation was masked by the same line of code. In the "
        "mask the control token that ends the answer is only read, so nothing teaches the model to "
        "stop. What it says after the answer makes a right answer wrong.",
        cure="Mask padding by length and never by id, as sftkit does.",
    ),
    "wrong template": Patient(
        broken="The training rows were written with headlines (### User:), and the model is asked "
        "with its own control tokens.",
        sign="asked otherwise",
        look="Read the beginning of the training row beside the question as asked, sign by sign.",
        telling="The training learned what it was given. But the beginning of the training row and "
        "the question as asked are not the same text. How much is lost on the way is luck: facts "
        "that are well learned may come through, so right answers do not rule it out.",
        cure="Let the tokenizer's own template write both, and save it with the adapter.",
    ),
    "leaked test": Patient(
        broken="The tested rows were joined to the training rows before they were divided.",
        sign="test in training",
        look="Nothing looks ill here, and one line looks too good. Which number must be 0 "
        "in an honest run?",
        telling="Everything looks as well as in the healthy run, and that is the trouble. Only the "
        "audit tells: the tested questions stand in training word for word.",
        cure="Divide first, join never, and audit the division. Scores over leaked rows are to be "
        "thrown away; fresh questions give honest ones.",
    ),
    SWAPPED: Patient(
        broken="The labels are listed in another order where the model is used than where it was "
        "trained: by first appearance there, by the alphabet here.",
        sign="classes exchanged",
        look="How often would a coin be right? To be further below that, what must the model know?",
        telling="Whoever knows nothing is right half of the time in two classes. To be wrong "
        "far more often, one has to know the answer. And the log's last loss was low.",
        cure="Save the names of the classes with the model, and never sort them again. The weights "
        "are sound: name the outputs rightly, and nothing has to be trained.",
    ),
    "huge rate": Patient(
        broken="The learning rate was far beyond the cliff; a 0 was lost in typing.",
        sign="loss climbs",
        look="Where does the training loss end, and where did it begin? And what became of"
        " general text?",
        telling="The loss ends above its first value, the answers are no language any more, and "
        "general text is lost as well.",
        cure="Start again from the base at a tenth of the rate, or less: notebook 03 finds it in a "
        "minute. More steps do not mend this.",
    ),
    "tiny data": Patient(
        broken="Two rows were taught, over and over.",
        sign="learned by heart",
        look="Compare the end of the training loss with the loss of fresh rows. Of which "
        "question is the answer you read the right one?",
        telling="The training loss falls faster than in the healthy run, to nearly nothing, while "
        "that of fresh rows does not follow. Answers to other questions are those two.",
        cure="More and other rows. Until then: fewer steps, stopped by held-out rows.",
    ),
    "adapter not attached": Patient(
        broken="The adapter's file names its weights otherwise than the model does, as after "
        "torch.compile. The loader warned, left the adapter as it was born, and went on.",
        sign="no delta at all",
        look="How many tested rows have a loss that is the base's to the last bit, and "
        "what did the training log say of the same model?",
        telling="The training curve is the healthy one, and every answer is the base's. What tells "
        "is a difference of exactly 0, to the last bit, on every row: no training does that.",
        cure="Compare the names before loading, as load_adapter does; and in every evaluation ask "
        "whether any delta differs from 0.",
    ),
    "wrong base": Patient(
        broken="The adapter was trained on top of a model into which an earlier adapter had been "
        "merged, and is used on the original base.",
        sign="starts elsewhere",
        look="Two numbers are measured before any step was taken. Should they agree?",
        telling="The mask is sound, and yet the log's first loss is not that of the base which is "
        "here. It was measured before any step, so no training can be the reason. What the earlier "
        "adapter knew is missing.",
        cure="Put it on the base it was made for. A fingerprint of the base beside the adapter "
        "makes the mistake impossible.",
    ),
    "merged into 4-bit": Patient(
        broken="The adapter was merged into weights of 4 bits. Most of its changes are smaller "
        "than half a step between two of the 16 values, and were rounded away.",
        sign="ends elsewhere",
        look="The log begins as it should, and promises more than the model keeps; yet "
        "something did move. What makes changes smaller without removing them?",
        telling="The log's last loss is not reached in use, though the first one agrees. The "
        "answers have gone back towards the base's; but the deltas are not exactly 0.",
        cure="Merge into the unquantized base and quantize afterwards, or leave the adapter beside "
        "the 4-bit base.",
    ),
}
"""Every fault by name, in the order in which a chart is asked: what is certain comes first."""


def diagnose(chart: Chart, healthy: Chart) -> str:
    """Name the first fault of the table whose sign is there; healthy if none is."""
    found = set(find_signs(chart, healthy))
    named = (name for name, patient in PATIENTS.items() if patient.sign in found)
    return next(named, HEALTHY)
