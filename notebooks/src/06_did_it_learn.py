# ---
# jupyter:
#   sftkit:
#     short:
#       facts: 5
#       sizes: [1, 2]
#       seeds: [0]
#       views: 2
#       max_new_tokens: 4
#       stable_answers: 1
#       resamples: 200
# ---

# %% [markdown]
# # 06 · Did it learn?
#
# A colleague writes: *"Fine-tuned it on our questions and answers. It gets 26 of 30 right now!"* Is that good?
#
# Nobody can say. Not yet: four questions come first. **How sure** is that number? Better than **what**, if the old model were
# asked cleverly? Right **in which sense**? And would it come out so **again**, from another seed, or from less data? In this
# notebook you ask all four of a fine-tune of your own.
#
# Afterwards you will be able to
#
# - say which gains a test of N questions can see, before you trust one or train for one;
# - choose among loss, perplexity, exact match, token F1, ROUGE-L and chrF by what your answers look like;
# - put a fine-tune beside what it has to beat: the same model with examples, with instructions, with the facts in its prompt;
# - compare two models on the same questions, with intervals, McNemar's test, and your own eyes;
# - draw a learning curve over data size with several seeds, and say what a small set cannot show.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 5.1 | 1.7 GB | 2026-11-23 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: the model comes from the Python package index, so you need no account.

# %% [markdown]
# On Colab and Kaggle the next cell installs sftkit beside what is there already. Anywhere else it installs nothing.

# %%
import importlib.util
import os
import platform
import subprocess
import sys

REPO_URL = "https://github.com/OWNER/sftkit"
is_hosted = "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ
if is_hosted and importlib.util.find_spec("sftkit") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade-strategy", "only-if-needed"]
    subprocess.run([*pip, f"sftkit-notebooks @ git+{REPO_URL}"], check=True)

import sftkit

print(f"sftkit {sftkit.__version__}, Python {platform.python_version()}, {platform.system()}")

# %% [markdown]
# All you may want to change stands here.

# %% tags=["parameters"]
model_name = "smollm2-135m"  # the base model
facts = 15  # facts of the shop that are taught, at most 32
sizes = [1, 2, 8]  # training questions about each fact, along the learning curve
seeds = [0, 1, 2]  # each trains every size once
views = 16  # how often each fact is seen in every training; every size divides it
learning_rate = 2e-3  # chosen on validation questions
max_new_tokens = 16  # longest answer
stable_answers = 6  # answers that are written again in other company
resamples = 4000  # draws of each interval

# %% [markdown]
# ## 1 · How sure is 26 of 30?
#
# Thirty questions are a sample of all those that could have been asked. Wilson's interval says which true shares go
# together with what was seen. Guess its two ends before you run the cell.

# %%
from sftkit.evidence.shares import detectable_share, wilson_interval

for right, asked in ((26, 30), (260, 300)):
    low, high = wilson_interval(right, asked)
    print(f"{right} of {asked}: {right / asked:.0%}, 95 % interval {low:.0%} to {high:.0%}")

# %% [markdown]
# Two lessons. The interval of the short test is wide: "26 of 30" and "22 of 30" may well be equally good models. And ten
# times the questions make it only about three times narrower.
#
# Now turn it round, and ask *before* the test is written: which gain could a test of N questions see at all? "See" means
# that a true gain of this size would be found in four of five such tests. It depends on how many questions flip in any case,
# from right to wrong or back, when one model is swapped for another that is no better. Between a base model and its
# fine-tune that is easily one question in ten.

# %%
from sftkit import plots_learning

counts = (10, 20, 30, 50, 100, 200, 500, 1000)
by_flips = {
    flips: {count: detectable_share(count, discordance=flips) for count in counts}
    for flips in (0.2, 0.1, 0.0)
}
plots_learning.plot_detectable(by_flips, items=30)

# %% [markdown]
# Find the gain that you hope for on the left axis, and read off to the right how many questions you need. A gain below the
# line is not absent: the test is blind to it.
#
# ### Exercise 06.1
#
# Your team would switch models for a gain of 10 points, and one question in ten flips anyway: how many questions does the test
# need? Hand in the smallest number of `smallest`, which holds the gain that can be seen, by number of questions.

# %%
smallest, wanted = by_flips[0.1], 0.10
for count, gain in smallest.items():
    print(f"{count:>5} questions: {'nothing' if gain is None else f'{100 * gain:.1f} points'}")

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
fewest = min(count for count, gain in smallest.items() if gain is not None and gain <= wanted)
### END SOLUTION
check("06.1", fewest, smallest=smallest, wanted=wanted)

# %% [markdown]
# ## 2 · A fine-tune to put to the test
#
# We teach facts about Dunnowick, a shop that does not exist, so that nobody can have known them before. Each fact is
# asked about in eight phrasings for training, and in two that are only tested. Facts that are *never* taught come along
# as controls.

# %%
import time

clock = time.perf_counter()
from sftkit import fetch_model, load_model, load_tokenizer, pick_dtype, read_dataset, split_dataset
from sftkit.settings import DataSettings, ModelSettings

settings = ModelSettings(name=model_name)
source = fetch_model(settings)
tokenizer = load_tokenizer(settings, source=source)
choice = pick_dtype(settings)
base = load_model(settings, dtype=choice.dtype, source=source)
data = DataSettings(source="shop", split_by="split", max_tokens=512, system="")
splits = split_dataset(read_dataset("shop", split_by="split"), data)
names = list(dict.fromkeys(splits.train["group"]))
names = names[:: len(names) // facts][:facts]
taught = [row for row in splits.train if row["group"] in names]
asked = [row for row in splits.test if row["group"] in names]
print(f"{base.num_parameters():,} parameters on {base.device}, {choice.name}: {choice.reason}")
print(f"{len(taught)} questions taught, {len(asked)} tested, about {len(names)} facts")

# %% [markdown]
# `CurveTest` holds everything that is asked of every model in this notebook: the tested questions, to be answered in the
# model's own words; the loss of their right answers; and the loss of answers about facts that are never taught.

# %%
from sftkit.chat import encode_rows
from sftkit.evidence.learning import make_learning_test
from sftkit.learning_curve import CurveTest, score_curve
from sftkit.settings import EvaluateSettings

exam = EvaluateSettings(
    knowledge_items=100, style_items=100, max_new_tokens=max_new_tokens, resamples=resamples,
    baselines=("few-shot", "system"), few_shot=4,
    system_prompt="You answer questions about the shop Dunnowick in at most four words.",
)  # fmt: skip
coding = {"max_tokens": data.max_tokens, "system": data.system}
examples = encode_rows(taught, tokenizer, **coding).examples
once = list({row["group"]: row for row in splits.control}.values())  # one question per control
test = CurveTest(
    learning=make_learning_test(asked, [], tokenizer, exam, **coding),
    control=encode_rows(once, tokenizer, **coding).examples,
)
before = score_curve(base, tokenizer, test, exam)
print(f"{len(test.learning.questions)} questions; loss also of {len(test.control)} controls")
print(f"{test.learning.questions[0]}\nright: {test.learning.expected[0]}")
print(f"base:  {before.learning.answers[0].text}")

# %% [markdown]
# Now one training, on all eight phrasings. The base stays loaded; an adapter is attached, trained, tested and taken off again.

# %%
from sftkit import AdapterSettings
from sftkit.learning_curve import try_size
from sftkit.settings import TrainSettings

how = {
    "views": views,
    "adapter": AdapterSettings(r=16, lora_alpha=32),
    "train": TrainSettings(
        learning_rate=learning_rate, max_tokens_per_batch=1024, examples_per_batch=8,
        heldout_evaluations=1,
    ),
    "evaluate": exam,
}  # fmt: skip
first = try_size(base, tokenizer, examples, test, size=max(sizes), seed=seeds[0], **how)
after = first.scores
print(f"{first.rows} rows, {first.steps} steps in {first.seconds:.0f} s")

# %% [markdown]
# ### Is an answer even a fixed thing?
#
# We are about to compare answers word by word. Then the same question must get the same answer whatever stands beside it in
# the batch; with many programs it does not, because sums of floating-point numbers depend on how they are grouped. The kit
# asks every prompt in batches of one shape. Here is the test: some questions again, in other company.

# %%
from sftkit.evidence.generation import check_stability

prompts = test.learning.prompts[:stable_answers]
print(check_stability(base, tokenizer, prompts, max_new_tokens=4).sentence)

# %% [markdown]
# ## 3 · Loss and perplexity
#
# The oldest measure needs no answer to be written: how surprised is the model by the *right* answer? The loss is counted in
# nats per token; its exponential is the *perplexity*: among how many equally likely tokens the model seems to choose.
# Look at two things: does the loss of tested answers fall, and does that of the controls?

# %%
import math

from sftkit.evidence.learning import compare_learning
from sftkit.evidence.statistics import paired_change
from sftkit.evidence.verdicts import judge_style


def compare_loss(old, new, rows):
    """Compare losses of the same answers, resampling whole facts."""
    return paired_change(
        [one.mean for one in old], [one.mean for one in new], resamples=resamples,
        groups=[row.group for row in rows], weights=[one.tokens for one in old],
    )  # fmt: skip


tested = compare_loss(before.learning.heldout, after.learning.heldout, test.learning.heldout)
controls = compare_loss(before.control, after.control, test.control)
for name, loss in {"taught, asked anew": tested, "never taught": controls}.items():
    low, high = loss.ci95
    perplexity = f"{math.exp(loss.before):,.1f} → {math.exp(loss.after):,.1f}"
    print(
        f"{name:<20}{loss.before:.2f} → {loss.after:.2f} ({loss.delta:+.2f}; {low:+.2f} to "
        f"{high:+.2f}), perplexity {perplexity}"
    )

# %% [markdown]
# Nobody told the model anything about the controls. So whatever happened to *their* loss is no knowledge:
#
# - if it fell, the model learned how answers look here, short and without a sentence around them: *style*;
# - if it rose, the model has become sure of itself in questions whose answers it cannot know, and pays for it. A model that has
#   facts by heart often does that to all others, as notebook 03 showed.
#
# Only what the taught facts gain beyond the controls speaks for knowledge. A falling loss alone never does.
#
# ### Exercise 06.2
#
# Compute the perplexity of the tested answers after training yourself. Each of `scores` has `.nats`, summed over the answer, and
# `.tokens`.

# %% tags=["exercise"]
scores = after.learning.heldout
### BEGIN SOLUTION
perplexity = math.exp(sum(one.nats for one in scores) / sum(one.tokens for one in scores))
### END SOLUTION
check("06.2", perplexity, scores=scores)

# %% [markdown]
# ## 4 · Right in which sense?
#
# Whoever reads answers needs a rule for "right". Here are some answers to one question whose right answer is "17 months", measured
# by every rule. Which of them would *you* accept? And which rule agrees with you?

# %%
from sftkit.evidence.answers import measure_answer
from sftkit.evidence.generation import Written

rules = ("exact", "token F1", "ROUGE-L", "chrF", "BLEU")
said = ("17 months", "17 months.", "It is 17 months.", "seventeen months", "16 months", "months 17")
print(f"{'':<20}" + "".join(f"{rule:>10}" for rule in rules))
for words in said:
    values = measure_answer(Written(text=words, tokens=3, ended=True), "17 months")
    print(f"{words:<20}" + "".join(f"{values[rule]:>10.2f}" for rule in rules))

# %% [markdown]
# No rule is right for all answers:
#
# - **exact** asks for the very words, apart from case, articles and punctuation. For short facts it is the honest one: "16 months"
#   gets nothing. It punishes "It is 17 months."
# - **token F1** and **ROUGE-L** count common words; ROUGE-L wants them in order. They forgive a sentence around the fact, and
#   give "16 months" half the points for the word that does not matter.
# - **chrF** counts common runs of characters, so it forgives endings and spelling. **BLEU** was made for long translations:
#   on two words it says little.
#
# For one-line facts take exact; for summaries and long answers chrF or ROUGE-L, with reading; never one rule alone.
#
# ## 5 · Better than what?
#
# The base model of notebook 00 was asked bluntly. That is a weak rival: whoever would not fine-tune would *write a better prompt*.
# So the same base model is asked in three more ways:
#
# - **few-shot**: four other questions with their answers stand before each question;
# - **system**: it is told to answer in at most four words;
# - **facts in the prompt**: it is given all the facts to look up. That is what you would do instead of fine-tuning, as long as
#   they fit.
#
# Before you run it: which of the three will come closest?

# %%
from dataclasses import replace

from sftkit.evidence.learning import score_learning
from sftkit.evidence.prompting import make_baseline_tests

facts_in_words = {row["group"].replace("-", " "): row["messages"][-1]["content"] for row in taught}
book = "Facts about Dunnowick. " + " ".join(f"{k}: {v}." for k, v in facts_in_words.items())
told = f"{book} Answer with one of these facts, in at most four words."
rivals = make_baseline_tests(asked, taught, tokenizer, exam, data)
with_book = replace(exam, baselines=("system",), system_prompt=told)
rivals["facts in prompt"] = make_baseline_tests(asked, taught, tokenizer, with_book, data)["system"]
for name, rival in rivals.items():
    print(f"{name}: {len(rival.prompts[0])} tokens before the answer")
beside = {name: score_learning(base, tokenizer, rival, exam) for name, rival in rivals.items()}

# %% [markdown]
# Every question was answered by the tuned model and in four ways by the base. All measures of all of them, side by side:

# %%
learned = compare_learning(test.learning, before.learning, after.learning, exam, baselines=beside)
measures = {measure.name: measure for measure in learned.answers}
ways = list(beside)
print(f"{'':<14}{'base':>10}" + "".join(f"{way:>17}" for way in ways) + f"{'tuned':>10}")
for name, measure in measures.items():
    form = ".2f" if measure.unit == "share" else ".1f"
    row = [measure.change.before, *(measure.baselines[way].before for way in ways)]
    shown = [f"{row[0]:>10{form}}", *(f"{value:>17{form}}" for value in row[1:])]
    print(f"{name:<14}{''.join(shown)}{measure.change.after:>10{form}}")

# %% [markdown]
# Read line by line. The last four need no right answer at all:
#
# - **ended**: did the model end its turn, or did it run into the limit? A model that never learned to stop is of no use in a chat,
#   however right its first words are.
# - **repetition**: the share of three-word runs that stood in the answer before. Broken models stutter.
# - **tokens**, **words**: how much it writes. Neither more nor less is better, but a change explains other changes: a rule that
#   punishes extra words goes up when answers get shorter.
#
# Now the gains, with their intervals. Both models answered the same questions, so each question is compared with itself; and
# whole *facts* are resampled, because two phrasings of one fact stand or fall together.

# %%
plots_learning.plot_rivals([measures[name] for name in ("exact", "chrF", "ended")])

# %% [markdown]
# *ended* is form, not knowledge: see in the table how far the base gets with it by being told, or shown, to be brief. And in
# *exact* something is unfair. Read what the rivals say, before you believe a figure:

# %%
from sftkit.records import is_exact

expected = test.learning.expected
for name, scored in beside.items():
    print(f"{name}:")
    for right, answer in list(zip(expected, scored.answers, strict=True))[:4]:
        print(f"     right: {right:<22} said: {answer.text!r}")

# %% [markdown]
# An answer such as "It is 23 days." is right, and *exact* calls it wrong. The tuned model was trained to write the bare words; of
# its gain by that rule a part is mere form. So let us add a rule that forgives any sentence around the fact: does the answer
# **contain** the right words?

# %%
from sftkit.evidence_records import AnswerMeasure
from sftkit.records import normalise_answer


def contains(answers):
    """Say of each answer whether the right words stand in it, one after the other."""
    return [
        f" {normalise_answer(right)} " in f" {normalise_answer(answer.text)} "
        for answer, right in zip(answers, expected, strict=True)
    ]


tuned = contains(after.learning.answers)
by_rival = {name: contains(scored.answers) for name, scored in beside.items()}
gains = {
    name: paired_change(had, tuned, groups=test.learning.groups, resamples=resamples)
    for name, had in {"base": contains(before.learning.answers), **by_rival}.items()
}
measures["contains"] = AnswerMeasure(
    name="contains", unit="share", better="higher", change=gains.pop("base"), baselines=gains
)
plots_learning.plot_rivals([measures[name] for name in ("contains", "exact")])

# %% [markdown]
# Compare the two panels: where they differ, the difference is form, not knowledge.
# (The fair rule can be cheated, too: whoever recites all facts at once says the right one among them. Look at *tokens* beside it.)
#
# The line "facts in prompt" is the sober one. It costs nothing to train and can be changed at any time; but it pays for the
# facts with every single question (the tokens were counted above), they must fit, and a small model does not always find
# the right one among them.
#
# ### Exercise 06.3
#
# Compare the tuned model with the rival that has the facts in its prompt, question by question, by the fair rule: how many
# answers turned from wrong to right, how many from right to wrong, and what does McNemar's exact test say?
# `mcnemar_exact(to_wrong, to_right)` counts only questions that flipped.

# %%
from sftkit.evidence.shares import mcnemar_exact

in_prompt = by_rival["facts in prompt"]
print(f"contain the right words: {sum(in_prompt)} with the facts in the prompt, {sum(tuned)} tuned")

# %% tags=["exercise"]
### BEGIN SOLUTION
_pairs = list(zip(in_prompt, tuned, strict=True))
to_right, to_wrong = _pairs.count((False, True)), _pairs.count((True, False))
p_value = mcnemar_exact(to_wrong, to_right)
### END SOLUTION
check("06.3", (to_right, to_wrong, p_value), rival=in_prompt, tuned=tuned)

# %% [markdown]
# ### Exercise 06.4
#
# By the fair rule: which rival is the strongest, and does the tuned model beat it beyond chance? Use the interval, which knows that
# phrasings belong to facts; McNemar's test takes every question for itself.

# %% tags=["exercise"]
measure = measures["contains"]
### BEGIN SOLUTION
_changes = {"base": measure.change, **measure.baselines}
strongest = max(_changes, key=lambda name: _changes[name].before)
is_beaten = _changes[strongest].ci95[0] > 0
### END SOLUTION
check("06.4", (strongest, is_beaten), measure=measure)

# %% [markdown]
# ## 6 · In one sentence, with what cannot be seen
#
# The verdict over the plain base model, as a report of the kit would write it. And beside it what this very test could not
# have seen, from the spread that was found:

# %%
from sftkit.evidence.statistics import detectable_difference
from sftkit.evidence.verdicts import judge_knowledge

print(judge_knowledge(learned).sentence)
print(judge_style(learned).sentence)
for name, gain in {"base": measure.change, **measure.baselines}.items():
    unseen = detectable_difference(gain.ci95, groups=gain.groups)
    unseen = unseen or detectable_share(gain.groups) or 1.0  # no spread was seen: count facts
    print(f"contains, over {name}: a gain under {100 * unseen:.0f} points could not have been seen")

# %% [markdown]
# ## 7 · Read
#
# No number replaces this. The kit picks the questions that changed most, for better *and* for worse. What was lost deserves more
# of your time than what was won: is it a new mistake, a rule that is too strict, or a wrong reference?

# %%
print(f"{sum(not one.won for one in learned.changed)} of {len(learned.changed)} got worse\n")
for change in learned.changed:
    arrow = "won " if change.won else "lost"
    numbers = f"{change.measure} {change.before:.2f} → {change.after:.2f}"
    print(f"{arrow} {change.question}\n     right: {change.expected}   ({numbers})")
    print(f"     base:  {change.base[:90]!r}\n     tuned: {change.tuned!r}\n")

# %% [markdown]
# And the mistakes that are left, which may not have changed at all. Does the model say *another* fact of the shop? Then it has
# learned the answers, and mixes up the questions. Does it say something new of the right form? Then it has learned the style.

# %%
known = set(expected)
for question, right, answer in zip(
    test.learning.questions, expected, after.learning.answers, strict=True
):
    if not is_exact(answer.text, right):
        kind = "another fact" if answer.text.rstrip(".") in known else "no fact taught"
        print(f"{question}\n     right: {right}   tuned: {answer.text!r} ({kind})")

# %% [markdown]
# ## 8 · Would more data help? Would it come out so again?
#
# All that was one training. Two questions are left, and one experiment answers both: a **learning curve**.
#
# We train on one phrasing of each fact, on two, and on eight. All trainings are equally long: with fewer phrasings, each
# is seen more often. So what changes is the *variety* of the data and nothing else. And each training is done with three
# **seeds**: another seed draws other phrasings, begins with another adapter, and sees the rows in another order. None of that
# should matter, and all of it can.
#
# Before you run it: sketch the curve. Where does one phrasing get you, and which step will bring more? And how far apart
# will the three seeds lie?

# %%
from sftkit.learning_curve import measure_curve

curve = measure_curve(
    base, tokenizer, examples, test,
    sizes=sizes, seeds=seeds, start=before, done=[first], **how,
)  # fmt: skip

# %%
plots_learning.plot_learning_curve(curve)

# %% [markdown]
# Pale points are single trainings: what you would have reported had you trained once. The line goes through their means. The
# black intervals count both causes of luck, *which facts* are asked and *which seed* was drawn; with three seeds the second
# is known only roughly, and the interval is wide for it.
#
# All these models were trained to write the bare words, so between them the strict rule *exact* is fair. On the right, the loss
# of the controls shows what comes of training apart from the facts. What lies between the two curves is knowledge.
#
# Now step by step. Does each help, beyond chance?

# %%
from sftkit.learning_curve import steps_in_words

print(*steps_in_words(curve), sep="\n")

# %% [markdown]
# "Undecided" does not mean "no gain". It means that so few facts and so few seeds cannot tell. Loss may decide what exact answers
# leave open, because it moves with every question, while an answer is only right or wrong.
#
# ### Exercise 06.5
#
# Two people each train once: one with the second largest set, one with the largest. `fewer` and `more` hold the share of right
# answers by seed. In how many of all pairs, one seed from each, is the larger set *not* ahead?

# %%
last_two = curve.sizes[-2:]
fewer, more = (curve.change("exact", after=size).by_seed for size in last_two)
start = curve.change("exact", after=last_two[0]).before
fewer, more = ([start + gain for gain in gains] for gains in (fewer, more))
print("fewer:", *(f"{share:.3f}" for share in fewer), " more:", *(f"{share:.3f}" for share in more))

# %% tags=["exercise"]
### BEGIN SOLUTION
not_ahead = sum(after_ <= before_ for before_ in fewer for after_ in more)
### END SOLUTION
check("06.5", not_ahead, fewer=fewer, more=more)

# %% [markdown]
# ### What a small set can show, and what it cannot
#
# A test of a few dozen questions and three seeds **can** show that a large effect is there: a fine-tune against a base that
# knows nothing, one phrasing against many. It **cannot** rank two good models, find the better of two close settings, or promise
# the same number to whoever trains again. Nor can it speak of other facts than these, other models or longer answers.
#
# So report it as it is: the number, its interval, the strongest rival, the count of seeds, and what could not have been seen.
#
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory of this process {peak_memory_bytes() / 1e9:.2f} GB")
print(f"{choice.name}, seeds {seeds}, {time.strftime('%Y-%m-%d')}")

# %% [markdown]
# - A share without an interval is an anecdote. Ask which gain the test can see before you look for one.
# - The loss shows style at once; knowledge is what taught facts gain beyond facts never taught.
# - Choose the rule for "right" by the answers you expect, and read what flipped.
# - Beat the strongest rival, not the untouched base.
# - One training is one draw. Several seeds, with an interval that counts them, are a result.
#
# In a recipe, all but the learning curve is settings; the report then shows every rival beside the fine-tune:
#
# ```
# sftkit run demo --set 'evaluate.baselines=[few-shot, system]' --set 'evaluate.system_prompt=Answer in four words.'
# ```

# %%
from sftkit.exercises import progress

progress("06")
