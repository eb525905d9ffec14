# ---
# jupyter:
#   sftkit:
#     short:
#       facts: 2
#       steps: 2
#       tokens_per_step: 200
#       measurements: 1
#       passages: 1
#       max_new_tokens: 3
#       tickets: 24
#       ticket_epochs: 1
# ---

# %% [markdown]
# # 15 · Broken on purpose
#
# Most fine-tunes that fail do not crash. They train to the end, write an adapter, and are wrong. Here are ten of them, each
# broken in one single thing, and you are the doctor: from its chart you say what each one has.
#
# Afterwards you will be able to
#
# - read a training curve, a mask, a handful of answers and a few numbers together, as one chart;
# - tell ten common faults apart, most of which raise no error anywhere;
# - say for each of them what cures it, and which check would have found it on the first day;
# - say what a good-looking training curve proves, and what not.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 4.6 | 2.5 GB | 2026-11-23 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: models and data come from the Python package index, so you need no account.

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
# All you may want to change stands here. With another `order` the patients change their beds, and you can play again; the
# solutions are for this one.

# %% tags=["parameters"]
model_name = "smollm2-135m"  # the chat model
label_model_name = "minilm-l6"  # the encoder of the one patient that sorts tickets
facts = 6  # facts of the shop that are taught
steps = 14  # optimizer steps of every training
tokens_per_step = 384  # tokens of one step
measurements = 3  # how often a training measures fresh rows
learning_rate = 2e-3  # of the healthy run
passages = 8  # general passages that are measured
max_new_tokens = 12  # longest answer
tickets = 120  # training tickets of the encoder
ticket_epochs = 4  # passes over them
seed = 0  # of every training
order = 1746  # of the patients

# %% [markdown]
# ## 1 · One healthy run, ten broken ones
#
# The healthy run teaches the small chat model some facts about Dunnowick, the shop that does not exist, in eight phrasings
# each. All patients are the same run with one thing broken; one of them is an encoder that sorts the shop's tickets, with a
# healthy twin of its own. The next cell trains and examines them all. It takes most of this notebook's time, and tells
# nothing.

# %%
import time

clock = time.perf_counter()
from sftkit.clinic_runs import ClinicSettings, admit

settings = ClinicSettings(
    model=model_name,
    label_model=label_model_name,
    facts=facts,
    steps=steps,
    tokens_per_step=tokens_per_step,
    measurements=measurements,
    learning_rate=learning_rate,
    passages=passages,
    max_new_tokens=max_new_tokens,
    tickets=tickets,
    ticket_epochs=ticket_epochs,
    seed=seed,
    order=order,
)
ward = admit(settings)

# %% [markdown]
# ### How to read a chart
#
# Every patient gets the same chart, beside that of the healthy run. To learn to read it, here is the healthy run beside
# itself, as patient 0. **Look** at it for a moment, because health is what you will compare with.
#
# - *The curve*: a line for the loss of each training step, diamonds for the loss of **fresh** rows. These ask for the taught
#   facts in other words; nobody trains on them, and no report is made of them.
# - *The log against use*: the training measures fresh rows before its first and after its last step, and writes both down.
#   We measure the same rows again where the model is *used*. In an honest run nothing lies between the two.
# - *A training row*, token by token, with what is learned from; below it the same question as the model is asked it.
# - *Two answers*: one about the shop, and one that any chat model can answer.

# %%
from IPython.display import display
from sftkit.clinic_views import Case
from sftkit.plots_clinic import plot_case

display(plot_case(Case(number=0, chart=ward.healthy, healthy=ward.healthy)))
Case(number=0, chart=ward.healthy, healthy=ward.healthy)

# %% [markdown]
# What is fine about it: the loss falls, and the diamonds fall with it. Before and after, the log says what is measured in use, up to rounding.
# The answer is learned to its last control token, and nothing else is. The row begins exactly as the question is asked.
# Every tested row moved away from the base, and no tested row stands in training. And yet the
# loss on general text moved, too: healthy means taught as one should, and not that nothing was forgotten (notebook 07).
#
# ### The ten faults
#
# Each of these occurs once.
#
# - `"adapter not attached"`: the trained adapter is not in the model that answers.
# - `"all masked"`: no token of any row is learned from.
# - `"huge rate"`: the learning rate is far too high.
# - `"leaked test"`: the tested rows were trained on.
# - `"merged into 4-bit"`: the adapter was merged into a base whose weights are held in 4 bits.
# - `"pad is eos"`: whoever masked the padding masked the end of every answer with it.
# - `"swapped labels"`: two classes have changed their names.
# - `"tiny data"`: far too few rows, over and over.
# - `"wrong base"`: the adapter is used on another base than it was made for.
# - `"wrong template"`: conversations are written in one way in training and in another in use.
#
# For each patient: look first, then write its fault into the exercise, and only then open the diagnosis below it. A wrong
# answer gets a hint; `print(ward.hint(3))` says where to look at patient 3.

# %% [markdown]
# ## 2 · The ward

# %% [markdown]
# ### Patient 1

# %%
display(plot_case(ward.case(1)))
ward.case(1)

# %% [markdown]
# **Exercise 15.1.** What is wrong with patient 1?

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
# The training loss ends above where it began, and general text is lost as well.
diagnosis_1 = "huge rate"
### END SOLUTION
check("15.1", diagnosis_1, ward=ward)

# %%
ward.reveal(1)

# %% [markdown]
# ### Patient 2

# %%
display(plot_case(ward.case(2)))
ward.case(2)

# %% [markdown]
# **Exercise 15.2.** What is wrong with patient 2?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The loss is 0 in every step: no token of the row is learned from.
diagnosis_2 = "all masked"
### END SOLUTION
check("15.2", diagnosis_2, ward=ward)

# %%
ward.reveal(2)

# %% [markdown]
# ### Patient 3

# %%
display(plot_case(ward.case(3)))
ward.case(3)

# %% [markdown]
# **Exercise 15.3.** What is wrong with patient 3?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The row is written with headlines, and the question is asked with control tokens.
diagnosis_3 = "wrong template"
### END SOLUTION
check("15.3", diagnosis_3, ward=ward)

# %%
ward.reveal(3)

# %% [markdown]
# ### Patient 4

# %%
display(plot_case(ward.case(4)))
ward.case(4)

# %% [markdown]
# **Exercise 15.4.** What is wrong with patient 4?

# %% tags=["exercise"]
### BEGIN SOLUTION
# Wrong far more often than a coin, after a training that went well.
diagnosis_4 = "swapped labels"
### END SOLUTION
check("15.4", diagnosis_4, ward=ward)

# %%
ward.reveal(4)

# %% [markdown]
# ### Patient 5

# %%
display(plot_case(ward.case(5)))
ward.case(5)

# %% [markdown]
# **Exercise 15.5.** What is wrong with patient 5?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The log is the healthy one, and no tested row moved, to the last bit.
diagnosis_5 = "adapter not attached"
### END SOLUTION
check("15.5", diagnosis_5, ward=ward)

# %%
ward.reveal(5)

# %% [markdown]
# ### Patient 6

# %%
display(plot_case(ward.case(6)))
ward.case(6)

# %% [markdown]
# **Exercise 15.6.** What is wrong with patient 6?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The log's first loss is not that of the base which is here, before any step.
diagnosis_6 = "wrong base"
### END SOLUTION
check("15.6", diagnosis_6, ward=ward)

# %%
ward.reveal(6)

# %% [markdown]
# ### Patient 7

# %%
display(plot_case(ward.case(7)))
ward.case(7)

# %% [markdown]
# **Exercise 15.7.** What is wrong with patient 7?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The control token that ends the answer is only read.
diagnosis_7 = "pad is eos"
### END SOLUTION
check("15.7", diagnosis_7, ward=ward)

# %%
ward.reveal(7)

# %% [markdown]
# ### Patient 8

# %%
display(plot_case(ward.case(8)))
ward.case(8)

# %% [markdown]
# **Exercise 15.8.** What is wrong with patient 8?

# %% tags=["exercise"]
### BEGIN SOLUTION
# The training loss is nearly 0, and the loss of fresh rows did not follow.
diagnosis_8 = "tiny data"
### END SOLUTION
check("15.8", diagnosis_8, ward=ward)

# %%
ward.reveal(8)

# %% [markdown]
# ### Patient 9

# %%
display(plot_case(ward.case(9)))
ward.case(9)

# %% [markdown]
# **Exercise 15.9.** What is wrong with patient 9?

# %% tags=["exercise"]
### BEGIN SOLUTION
# Well trained, and mostly gone in use; but not exactly the base.
diagnosis_9 = "merged into 4-bit"
### END SOLUTION
check("15.9", diagnosis_9, ward=ward)

# %%
ward.reveal(9)

# %% [markdown]
# ### Patient 10

# %%
display(plot_case(ward.case(10)))
ward.case(10)

# %% [markdown]
# **Exercise 15.10.** What is wrong with patient 10?

# %% tags=["exercise"]
### BEGIN SOLUTION
# All is well but the audit: the tested questions stand in training.
diagnosis_10 = "leaked test"
### END SOLUTION
check("15.10", diagnosis_10, ward=ward)

# %%
ward.reveal(10)

# %% [markdown]
# ## 3 · At the door
#
# Five of these ten never get so far in a run of this kit, because they are refused. To show them to you, the clinic had to go round the refusal
# by plain code, as many scripts have it: a loop that divides by at least 1, a loader that warns and goes on, a
# merge that rounds. This is what was said to each at the door:

# %%
refused = [case for case in ward.cases if case.chart.refusal]
for case in refused:
    print(f"{case.chart.fault}\n  {case.chart.refusal[:300]}\n")
print(f"{len(refused)} of {len(ward.cases)} refused")

# %% [markdown]
# A refusal is worth more than a symptom: it comes before the hours, and it names the place. But look at who is *not* in this
# list. Nobody can know from a file whether two rows are all there is, whether a rate is a slip, or in which order you
# think of your classes. These have to be found by looking, and by checks.
#
# ## 4 · Where to look
#
# Each sign you used can be written down as a rule that compares a chart with the healthy one, such as "the training log and
# the use disagree". **Look** for the patients whose row is empty in the first three columns: these looked well
# as long as they trained.

# %%
from sftkit.plots_clinic import plot_signs

plot_signs(ward)

# %%
from sftkit.clinic import FAMILIES, diagnose

for family in FAMILIES:
    print(f"{family:<16} {', '.join(ward.found_by(family)) or 'nobody'}")
right = sum(diagnose(case.chart, case.healthy) == case.chart.fault for case in ward.cases)
print(f"\nnamed rightly by rule, with all of them: {right} of {len(ward.cases)}")
print(f"the healthy run is called: {diagnose(ward.healthy, ward.healthy)}")

# %% [markdown]
# No single family of signs sees everybody, the answers included: whoever only reads answers cannot tell a leaked test from
# a good model. That is why a run of this kit writes down all of them, and why its gate (notebook 08) asks each by itself.
#
# One healthy run and ten patients with one seed each show *that* a sign can tell, not how often it does. Which check kills which
# fault, over sound models of several seeds, is the question of the mutants in notebook 08.

# %% [markdown]
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory of this process {peak_memory_bytes() / 1e9:.2f} GB")
print(f"seed {seed}, order {order}, {time.strftime('%Y-%m-%d')}")

# %% [markdown]
# In this order, because the first questions are the cheapest:
#
# 1. Does the audit find tested rows in training? Then no number below means anything.
# 2. Does one masked row look right, to the last token, and begin as the question is asked?
# 3. Does the training loss fall, and neither climb nor stand at 0? Does the loss of fresh rows follow?
# 4. Is what the log says before the first step what this base says? And after the last, what this model says?
# 5. Did anything move, on every row? And did general text stay?
# 6. Only then: are the answers right?

# %%
from sftkit.exercises import progress

progress("15")
