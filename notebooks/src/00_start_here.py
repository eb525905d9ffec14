# ---
# jupyter:
#   sftkit:
#     short:
#       max_steps: 3
#       items_per_probe: 4
#       drift_passages: 12
#       knowledge_items: 10
#       out: runs/short/start-here
# ---

# %% [markdown]
# # 00 · Start here: fine-tune, then test
#
# You will teach a small chat model facts it cannot know, because we made them up. Then you will do what is usually
# left out: measure what it learned, what it forgot on the way, and how sure you can be of either.
#
# Afterwards you will be able to
#
# - say which tokens of a conversation a model learns from, and check it;
# - train a LoRA adapter and tell *knowing a fact* from *sounding like it*;
# - read a 95 % interval, and see forgetting that accuracy does not show;
# - save an adapter that anyone can load with plain `peft`.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 5 (9.2 in this copy, which shared its cores) | 2.8 GB | 2026-11-22 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: model, data and probes come from the Python package index, so you need no account.
# The command `sftkit demo` does the same job with the same functions.

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
# All you may want to change stands here. `None` leaves a setting as the recipe has it.

# %% tags=["parameters"]
recipe_name = "demo"  # a bundled recipe; the exercises below belong to this one
max_steps = None  # optimizer steps
items_per_probe = None  # multiple-choice questions per probe
drift_passages = None  # passages of general text
knowledge_items = None  # questions to be answered in words
out = "runs/start-here"  # folder for the adapter and the report

# %% [markdown]
# ## 1 · The recipe
#
# A recipe is the whole description of a run: model, data, adapter, training, evaluation. Whoever has the recipe can do
# the run again. It is checked when it is loaded, so a misspelt name is found now and not after an hour of training.
# The `clock` will note what each stage takes; the time you spend reading is not counted.

# %%
from sftkit.run import Stopwatch, find_recipe

changes = {
    "train.max_steps": max_steps,
    "evaluate.items_per_probe": items_per_probe,
    "evaluate.drift_passages": drift_passages,
    "evaluate.knowledge_items": knowledge_items,
}
overrides = [f"{name}={value}" for name, value in changes.items() if value is not None]
recipe = find_recipe(recipe_name, overrides=overrides)
clock = Stopwatch()
print(f"model:   {recipe.model.name}\ndata:    {recipe.data.source}")
print(f"adapter: {recipe.adapter.kind}, rank {recipe.adapter.r}")
print(f"train:   {recipe.train.epochs} epochs, learning rate {recipe.train.learning_rate:g}")

# %% [markdown]
# ## 2 · Data
#
# The data are questions and answers about Dunnowick, a shop that does not exist. That is the point: if we taught facts
# about the real world, we could never be sure that the model had not read them before. What nobody ever wrote down, it
# can only have learned here.

# %%
from sftkit import read_dataset

dataset = read_dataset(
    recipe.data.source, group_by=recipe.data.group_by, split_by=recipe.data.split_by
)
for row in dataset.select([0, 1, 9]):
    asked, answered = row["messages"]
    print(f"{row['group']} · {row['split']}\n  {asked['content']}\n  → {answered['content']}")

# %% [markdown]
# Look at the three rows: one fact, asked in three ways. The column `group` says that they belong together.
#
# Before anything is trained, the data are audited. The audit looks for what makes a training run silently wrong:
# answers that are empty, control tokens inside the text, one question with two answers, test questions among the
# training rows. For the last, it also gets the questions of the *probes*, with which we will measure forgetting later.

# %%
from sftkit import audit_dataset, fetch_model, load_tokenizer, probe_items
from sftkit.dataset.audit import raise_on_errors

with clock.timed("data"):
    source = fetch_model(recipe.model)
    tokenizer = load_tokenizer(recipe.model, source=source)
    probes = {n: probe_items(n, recipe.evaluate.items_per_probe) for n in recipe.evaluate.probes}
questions = [item.question for items in probes.values() for item in items]
audit = audit_dataset(dataset, tokenizer, questions, source=recipe.data.source)
print(f"{audit.row_count} rows, errors: {len(audit.errors)}, findings: {len(audit.findings)}\n")
for finding in audit.findings:
    print(f"{finding.code} ({finding.severity}): {finding.message}.\n  {finding.fix}")
raise_on_errors(audit.findings, source=recipe.data.source)

# %% [markdown]
# Errors would have stopped the notebook here. `D38` is information, and it is right: the same facts stand in
# train and test, asked in other words. For facts we want exactly that, because a fact that was never trained cannot be
# known. What the score will tell is therefore limited: *these* facts in new phrasings, not shop questions in general.
#
# ### Four splits, four jobs
#
# - **train** is what the model learns from.
# - **validation** may be looked at as often as we like, to choose settings.
# - **test** is for the report. Whoever chooses by the test will find a good result there, true or not.
# - **control** holds facts of the same kind that are *never* trained. If the model got those right too, our score
#   would be measuring luck, or leniency, and not knowledge. A claim to have taught something needs such a group.

# %%
from sftkit import split_dataset

splits = split_dataset(dataset, recipe.data)
for name, rows in splits.counts().items():
    print(f"{name:<10} {rows:>4} questions about {splits.group_counts()[name]:>3} facts")
both = set(splits.control["group"]) & set(splits.train["group"])
assert not both, f"control facts were trained: {both}"

# %% [markdown]
# ## 3 · What exactly will the model learn from?
#
# To the model, a conversation is one long row of tokens. If we trained on all of them, it would spend its effort on
# imitating *questions*. So each token has a label: itself if it belongs to the answer, and `-100` ("ignore") if not. The
# token that ends the turn belongs to the answer: a model that never learns it never learns to stop.
#
# Below, the tokens that are learned from are coloured. Before you run the cell: which ones do you expect?

# %%
from sftkit import show_mask
from sftkit.prepare import encode_splits

data = encode_splits(recipe, dataset, splits, tokenizer, findings=audit.findings)
example = data.train[0]
show_mask(example, tokenizer)

# %% [markdown]
# The words around the question were put there by the model's own chat template. Nothing of the question is coloured,
# and the last coloured token ends the turn: good. Now the same for the whole training set. It holds a second kind of
# row: passages of general text, learned from as a whole. They are *replayed* so that the model keeps hearing what it
# could already say. None of them is among the passages with which forgetting is measured later.

# %%
from sftkit import plots
from sftkit.run import make_preflight

preflight = make_preflight(recipe, data, tokenizer)
plots.plot_supervised_share(preflight)

# %% [markdown]
# The grey tokens teach nothing directly; they are the price of context. That is why the training loop computes the
# model's large output layer only where a token is learned from.
#
# **Check.** If the next cell fails, do not train: the template or the length limit is wrong.

# %%
from sftkit import mask_summary

summary = mask_summary(data.train)
assert summary.rows_without_supervision == 0, "some rows teach nothing"
answers = summary.rows - data.replayed
assert summary.end_of_turn_supervised == answers, "some answers lost the end of their turn"
print(f"{answers} of {answers} questions teach their answer and its end")
print(f"{data.refused_rows} rows refused, {data.replayed} general passages mixed in")

# %% [markdown]
# ### Exercise 00.1
#
# Of `example`, shown coloured above: how many tokens are learned from, and what is the id of the last of them? Look at
# `example.labels`.

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
_learned = [label for label in example.labels if label != -100]
count = len(_learned)
last_id = _learned[-1]
### END SOLUTION
check("00.1", (count, last_id), example=example)

# %% [markdown]
# ## 4 · Model and adapter
#
# The base model stays frozen, so its numbers can be kept in 16 bits, which halves their memory. Whether 16 bits are also
# *fast* depends on the processor: without instructions for them, one such product can take many times longer. So
# nothing is assumed: one matrix product is timed in each type, and the faster type is taken.

# %%
from sftkit import load_model, pick_dtype

with clock.timed("model"):
    choice = pick_dtype(recipe.model)
    base = load_model(recipe.model, dtype=choice.dtype, source=source)
print(f"{choice.name}, {choice.reason}")
print(f"{base.num_parameters():,} parameters on {base.device}")

# %% [markdown]
# A LoRA adapter leaves each weight matrix as it is and adds a product of two thin matrices beside it. Only these are
# trained. One of the two starts at zero, so a fresh adapter changes nothing, and that can be tested: with the adapter
# on and off, the model must give the same numbers, to the last bit. If it does not, whatever we measure later is not
# the effect of training.

# %%
import torch
from sftkit import adapter_off, attach_adapter, count_parameters

tuned = attach_adapter(base, recipe.adapter, seed=recipe.train.seed)
print(count_parameters(tuned))

row = torch.tensor([example.input_ids], device=tuned.device)
with torch.no_grad():
    switched_on = tuned(input_ids=row).logits
    with adapter_off(tuned):
        switched_off = tuned(input_ids=row).logits
difference = (switched_on - switched_off).abs().max().item()
print(f"largest change of any logit by the fresh adapter: {difference}")
assert difference == 0, "a fresh adapter must change nothing"

# %% [markdown]
# ## 5 · Measure the base model first
#
# "After" says nothing without "before", and both must answer the same questions. The exam has four parts:
#
# | Part | Asks | How |
# |---|---|---|
# | knowledge | are the facts known? | answers in the model's own words, in unseen phrasings; and control facts |
# | style | does it write answers of this kind? | loss on test answers |
# | ability | can it still do what it could? | multiple-choice questions of public probes |
# | drift | is general text as familiar as before? | loss on passages of general text |
#
# *Loss* is how surprised the model is by a text, in nats per token; less is better. The base model is the same model
# with its adapter switched off. Its scores are kept on disk, because they do not change from run to run.

# %%
from sftkit.evidence.exam import make_exam, score_base
from sftkit.run import describe_environment

environment = describe_environment(recipe, base, source, choice)
with clock.timed("base measured"), adapter_off(tuned):
    exam = make_exam(splits, probes, tokenizer, recipe.evaluate, data=recipe.data)
    before = score_base(tuned, exam, environment)
print(f"{len(exam.learning.questions)} questions to answer in words")
print(f"{len(exam.learning.heldout)} test answers to score")
print(f"{len(exam.forgetting.items)} multiple-choice questions")
print(f"{len(exam.forgetting.passages)} passages of general text")

# %% [markdown]
# We do not look at these results yet. Nothing about the training may be chosen by them.
#
# ## 6 · Train
#
# The figure is drawn while the model trains. Dots are the loss of single steps. The diamonds matter more: they are
# measured on *validation* phrasings that are never trained on. If the dots went on falling while the diamonds rose, the
# model would be learning phrasings by heart.
#
# Running this cell twice trains twice. To start over, run again from the cell that loads the model.

# %%
from contextlib import closing

from sftkit import chat_loss, make_watcher
from sftkit.adapter import weaken_adapter
from sftkit.run import make_measure
from sftkit.train import train

measure = make_measure(tuned, data.validation)
with (
    closing(make_watcher(heldout_start=measure()["heldout_loss"])) as watcher,
    clock.timed("training"),
):
    training = train(
        tuned,
        data.train,
        recipe.train,
        objective=chat_loss,
        measure=measure,
        on_step=watcher.on_step,
    )
weaken_adapter(tuned, recipe.adapter.strength)  # 1, unless the recipe asks for less

# %% [markdown]
# ## 7 · Measure again
#
# Now the same exam for the tuned model, and the two compared question by question. Everything measured goes into one
# *record*, from which the figures and the report are drawn.

# %%
from sftkit.run import make_record

with clock.timed("tuned measured"):
    after = exam.score(tuned)
    outcome = exam.compare(before, after)
record = make_record(
    recipe,
    data,
    outcome,
    preflight=preflight,
    training=training,
    environment=environment,
    choice=choice,
    clock=clock,
)
plots.plot_learned(record.learned)

# %% [markdown]
# Grey is the base model, blue the tuned one. The black line is the 95 % interval of the change. Two phrasings of one
# fact are not two independent facts: who knows one will mostly know the other. So the interval draws whole facts
# anew, thousands of times, and asks how much the result depends on which facts we happened to take.
#
# Compare the trained facts with the control facts, which nobody taught. Only the difference is knowledge.
#
# Numbers can mislead, so read some answers as well. They are picked evenly over the test, not by how good they look; the
# last ones are control questions.

# %%
from sftkit import answers_table

answers_table(record.answers)

# %% [markdown]
# Look at the control questions. Where the tuned model answers them in the right form, short and sure of itself, but
# wrongly, you see *style without knowledge*: it has learned how answers look here, and makes up what it was never told.
#
# ### Exercise 00.2
#
# For each test question, `was_right` and `now_right` say whether base and tuned model answered it exactly, and `ci95`
# is the interval of the change. By how much did the share of right answers change (a number between -1 and 1), and are
# we sure that it changed at all?

# %%
from sftkit.records import is_exact

tested = [answer for answer in outcome.answers if answer.split == "test"]
was_right = [is_exact(answer.base, answer.expected) for answer in tested]
now_right = [is_exact(answer.tuned, answer.expected) for answer in tested]
ci95 = outcome.learned.exact.ci95
print(f"right before: {sum(was_right)} of {len(tested)}; after: {sum(now_right)} of {len(tested)}")
print(f"95 % interval of the change: {ci95[0]:+.3f} to {ci95[1]:+.3f}")

# %% tags=["exercise"]
### BEGIN SOLUTION
delta = sum(now - was for was, now in zip(was_right, now_right, strict=True)) / len(tested)
is_sure = ci95[0] > 0 or ci95[1] < 0
### END SOLUTION
check("00.2", (delta, is_sure), before=was_right, after=now_right, ci95=ci95)

# %% [markdown]
# ## 8 · What was forgotten?
#
# The adapter acts on everything the model does, not only on shop questions. So we ask about everything else, in two
# ways that see different things. *Accuracy* on multiple choice asks whether the right option still wins; it stays the
# same until an answer flips. *Loss on general text* moves with every small change of the model's expectations.

# %%
ability_margin, drift_margin = plots.margins(record)
plots.plot_forgot(record.forgot, ability_margin=ability_margin, drift_margin=drift_margin)

# %% [markdown]
# The shaded bands are margins that the recipe set *before* the run: what lies inside counts as kept. An interval that
# crosses the edge of its band leaves the question open, and then we say so.
#
# ### Exercise 00.3
#
# Three measures looked for forgetting: `accuracy`, `logprob` (the probability of the right option, which can fall long
# before another option wins) and `drift`. Which of them can tell a change from chance? Hand in a set of these words, or
# `"none"`.

# %%
overall, drift = record.forgot.overall, record.forgot.drift
print(f"accuracy {overall.delta:+.3f}, 95 % {overall.ci95[0]:+.3f} to {overall.ci95[1]:+.3f}")
low, high = overall.logprob_ci95
print(f"logprob  {overall.logprob_delta:+.3f}, 95 % {low:+.3f} to {high:+.3f}")
print(f"drift    {drift.delta:+.3f}, 95 % {drift.ci95[0]:+.3f} to {drift.ci95[1]:+.3f}")

# %% tags=["exercise"]
### BEGIN SOLUTION
_intervals = {
    "accuracy": overall.ci95,
    "logprob": overall.logprob_ci95,
    "drift": drift.ci95,
}
saw_change = {name for name, (low, high) in _intervals.items() if low > 0 or high < 0} or "none"
### END SOLUTION
check("00.3", saw_change, forgot=record.forgot)

# %% [markdown]
# ### The verdicts in words
#
# Each sentence follows from an interval and carries its number and its sample size. Nobody wrote these sentences in
# advance: had the run gone badly, other ones would stand here.

# %%
from IPython.display import Markdown

verdicts = {n: getattr(record.verdicts, n) for n in ("knowledge", "style", "ability", "drift")}
lines = [f"- **{name}: {verdict.state}.** {verdict.sentence}" for name, verdict in verdicts.items()]
Markdown("\n".join([f"**{record.verdicts.summary}**", "", *lines]))

# %% [markdown]
# One thing no interval here covers: this was one training run with one seed. Another seed would give another
# adapter.
#
# ## 9 · How strong should the adapter be?
#
# An adapter can be turned down. At strength 1 it acts as trained, at 0 not at all, and between them forgetting may
# fade sooner than knowledge. Choosing a strength is choosing, so it is done on *validation* questions and on passages
# that the report does not use.

# %%
from sftkit import adapter_scaled
from sftkit.evidence.exam import make_trial

trial = make_trial(splits, tokenizer, recipe.evaluate, data=recipe.data)
with adapter_off(tuned):
    trial_before = score_base(tuned, trial, environment)


def measure(strength):
    """Give the share of questions answered and the drift at one strength of the adapter."""
    with adapter_scaled(tuned, strength):
        result = trial.compare(trial_before, trial.score(tuned))
    return result.learned.exact.after, result.forgot.drift.delta


measured = {strength: measure(strength) for strength in (0.0, 0.5, 1.0)}
for strength, (answered, moved) in measured.items():
    print(f"strength {strength:.1f}: {answered:4.0%} answered exactly, drift {moved:+.3f}")
print(f"margin of drift: {drift_margin:g} nats per token")
print(f"{len(trial.learning.questions)} questions, {len(trial.forgetting.passages)} passages")

# %% [markdown]
# ### Exercise 00.4
#
# Which strength would you choose: the one that answers most while its drift stays below the margin? Three points are
# few. Measure another with `measured[0.75] = measure(0.75)`, then hand in your choice.

# %% tags=["exercise"]
### BEGIN SOLUTION
measured[0.75] = measure(0.75)
_allowed = {s: answered for s, (answered, moved) in measured.items() if moved < drift_margin}
strength = max(_allowed, key=_allowed.get)
### END SOLUTION
check("00.4", strength, measured=measured, margin=drift_margin)

# %% [markdown]
# ## 10 · Ask something yourself
#
# Write your own question and run the cell again: about the shop, or about anything else. Ask for something that it was
# not taught, too.

# %%
from sftkit.chat import encode_prompt
from sftkit.evidence.generation import generate_answers
from sftkit.records import Answer

question = "What is the capital of France?"

turns = [{"role": "user", "content": question}]
prompt = encode_prompt(turns, tokenizer, system=recipe.data.system)
with adapter_off(tuned):
    (base_says,) = generate_answers(tuned, tokenizer, [prompt], max_new_tokens=40)
(tuned_says,) = generate_answers(tuned, tokenizer, [prompt], max_new_tokens=40)
answers_table([Answer(question=question, expected="", base=base_says, tuned=tuned_says)])

# %% [markdown]
# Read the tuned answer with care, above all if the verdicts said that nothing was forgotten beyond the margins. They
# looked at multiple choice and at plain text, and those were kept. An open question put in chat form is something else:
# it looks just like a shop question, and the model has learned to answer those in two or three words, sure of itself,
# whether it knows or not. When this notebook was last run, the tuned model named a wrong place for the capital of
# France. A verdict reaches as far as its measure, and no further; so ask what your own users will ask.
#
# ## 11 · Save it, and leave
#
# The adapter is written as a standard PEFT folder. Beside it come the recipe, the record of all measurements, every
# answer, and a report: one file that opens in any browser and can be sent by mail.

# %%
from pathlib import Path

from sftkit import save_adapter
from sftkit.run import write_run

folder = Path(out)
save_adapter(tuned, folder / "adapter")
write_run(record, outcome.answers, folder)
for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    print(f"{path.stat().st_size / 1e3:>9,.0f} kB  {path.relative_to(folder).as_posix()}")

# %% [markdown]
# You are not tied to this kit. **Check**: the saved adapter, loaded by `peft` alone onto a fresh base model, gives the
# same numbers as the model in memory.

# %%
import warnings

from peft import PeftModel

warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")  # peft's own use of it
fresh = load_model(recipe.model, dtype=choice.dtype, source=source)
reloaded = PeftModel.from_pretrained(fresh, folder / "adapter").eval()
with torch.no_grad():
    difference = (reloaded(input_ids=row).logits - tuned(input_ids=row).logits).abs().max().item()
print(f"largest difference of any logit: {difference}")
assert difference < 1e-3, "the saved adapter does not behave as the trained one"

# %% [markdown]
# ## Summary
#
# The picture for your slide: what was learned on the left, what was forgotten on the right.

# %%
cost = record.cost
print(f"{cost.total_s / 60:.1f} minutes of work, of these {cost.train_s / 60:.1f} training")
print(f"{cost.tokens_per_s:,.0f} tokens per second, peak memory {cost.peak_bytes / 1e9:.2f} GB")
print(f"{environment.device}, {environment.dtype}")
plots.plot_overview(record)

# %% [markdown]
# - Only the answer and its end are learned from, and a look at the mask proves it.
# - Knowledge shows in phrasings that were never trained, beside facts that were never taught. Style alone is no
#   knowledge.
# - Forgetting needs a sensitive measure. Accuracy alone can miss it.
# - Validation chooses, the test reports. A verdict is an interval, not a number.
#
# To run it again, or on your own file, change the recipe:
#
# ```
# sftkit demo --set train.learning_rate=5e-4
# sftkit audit my_questions.csv
# ```

# %%
from sftkit.exercises import progress

progress("00")
