# ---
# jupyter:
#   sftkit:
#     short:
#       max_steps: 3
#       domains: {icd10: 2}
#       out: runs/short/your-own-domain
# ---

# %% [markdown]
# # 10 · Your own domain, end to end
#
# Put your own file into the one cell of parameters and run all: what can be learned from it is guessed, shown and yours to change; then
# it is divided, trained on, tested, and judged. As it stands, the letters to a shop are sorted (retail), and after them a medical and a legal set,
# with what is different about each.
#
# Afterwards you will be able to
#
# - go from a file to a tested fine-tune with two commands, and read every guess on the way;
# - find out whether rows that belong together lie on both sides of a split;
# - say how many test rows an answer needs;
# - write the tests that only somebody of your domain can write;
# - say whether the fine-tune was worth it.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 9.2, on cores shared with other work | 2.9 GB | 2026-11-23 |
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
# **The one cell to change.** `data` may be a CSV, JSON, JSON Lines, Parquet or Excel file, a folder of texts by label, or a name of
# the catalog. Exercises 10.3 and 10.4 belong to the data as they stand here.

# %% tags=["parameters"]
data = "shop-tickets"  # your file
name = "tickets"  # of the task
task = None  # chat, classify or regress; None guesses
columns = None  # such as {"text": "body", "label": "category"}; None guesses
model = None  # None takes one that fits this machine
max_steps = None  # optimizer steps; None does what the guess says
domains = {"icd10": 150, "privacy-qa": 300}  # other domains to try, and steps for each
out = "runs/your-own-domain"  # folder for everything

# %% [markdown]
# ## 1 · What is in the file?

# %%
import shutil
import time
from pathlib import Path

from sftkit import audit_file

clock = time.perf_counter()
folder = Path(out)
shutil.rmtree(folder, ignore_errors=True)
audit_file(data, task=task, columns=columns)

# %% [markdown]
# ## 2 · What can be learned from it?
#
# Each guess comes with its reason. In a terminal, `sftkit new NAME --data FILE` asks whether they are right.

# %%
from sftkit.scaffold_guess import guess_recipe

guess = guess_recipe(name, data, task=task, columns=columns, model=model)
for what, why in guess.reasons:
    print(f"{what + ':':<10} {why}")
for note in guess.notes:
    print(f"note:      {note}")

# %% [markdown]
# The division is the guess that matters most. One customer writes several letters; if one of them is in train and another in test,
# the test asks about somebody the model has met. So rows of one group stay on one side. Here is what dividing row by row would do.

# %%
import dataclasses

from sftkit.dataset.read import read_dataset
from sftkit.dataset.split import split_dataset

settings = guess.recipe.data
rows = read_dataset(data, task=settings.task, format=settings.format, columns=settings.columns)
by_row = split_dataset(rows, dataclasses.replace(settings, group_by="id"))
original = dict(zip(rows["place"], rows["group"], strict=True))
train_groups = [original[place] for place in by_row.train["place"]]
test_groups = [original[place] for place in by_row.test["place"]]
print(
    f"{len(train_groups)} rows in train, {len(test_groups)} in test, {len(set(rows['group']))} groups"
)

# %% [markdown]
# ### Exercise 10.1
#
# For what share of the test rows does train hold a row of the same group?

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
_known = set(train_groups)
shared = sum(_group in _known for _group in test_groups) / len(test_groups)
### END SOLUTION
check("10.1", shared, train_groups=train_groups, test_groups=test_groups)

# %% [markdown]
# ### Exercise 10.2
#
# Plan the test before you train. Say you expect to be right in 80 of 100 cases, and want to know it to ±5 points. How many test rows do you need?
# Half of a 95 % interval of a share p over n rows is about 1.96 × sqrt(p (1 − p) / n).

# %%
share, half = 0.80, 0.05
print(f"this file has {guess.splits['test']} test rows")

# %% tags=["exercise"]
### BEGIN SOLUTION
import math

rows_needed = math.ceil(share * (1 - share) * (1.96 / half) ** 2)
### END SOLUTION
check("10.2", rows_needed, share=share, half=half)

# %% [markdown]
# ## 3 · A folder to work in
#
# Recipe, behaviour tests, notebook and README. The recipe says the reason of every guess beside it; it is the whole description of the run.

# %%
from sftkit.scaffold import write_project

for path in write_project(guess, folder / name):
    print(path.name)
print((folder / name / "recipe.yaml").read_text(encoding="utf-8"))

# %% [markdown]
# ## 4 · Train and test

# %%
from sftkit import load_recipe
from sftkit.run import run

changes = [] if max_steps is None else [f"train.max_steps={max_steps}"]
recipe = load_recipe(folder / name / "recipe.yaml", overrides=changes)
record = run(recipe, folder / "first")
print(record.verdicts.summary)

# %%
from sftkit import plots, plots_labels

labels = record.learned.labels
if labels is not None:
    figure = plots_labels.plot_against_baselines(labels)
else:
    figure = plots.plot_overview(record)
figure

# %% [markdown]
# Where it is wrong, and how sure it was. Reading twenty mistakes teaches more than another run: some are wrong labels, some need another label,
# some are a gap in the data that you can fill.

# %%
for mistake in labels.mistakes[:8] if labels is not None else ():
    print(
        f"{mistake.confidence:.2f} {mistake.predicted}, not {mistake.target}: {mistake.text[:90]}"
    )

# %% [markdown]
# ## 5 · Tests that only you can write
#
# The starter in `behaviour.yaml` was drawn from your rows and says little. What must the model get right on its first day? Write it down
# as a test, in your own words, with the labels of the model:

# %%
known = list(labels.classes) if labels is not None else []
for test in record.checks.behaviour:
    print(f"{test.state:<10} {test.failures:>3} of {test.cases:<3} failed: {test.name}")
print(known)

# %% [markdown]
# ### Exercise 10.3
#
# Write a `minimum` test as YAML text: ten letters or more that nobody doubts, and the label that each has to get. Slots make many
# letters of few words.

# %% tags=["exercise"]
### BEGIN SOLUTION
own_test = """
task: classify
tests:
  - name: What is broken is damage
    capability: vocabulary
    kind: minimum
    template: "When I unpacked the {thing}, it {fault}."
    slots:
      thing: [lamp, globe, lantern, compass, telescope]
      fault: [was broken, had a crack, had a dent]
    expect: {label: damage}
    allowed: 0.2
"""
### END SOLUTION
check("10.3", own_test, labels=known)

# %% [markdown]
# ## 6 · May it be used?
#
# The gate holds the record against a policy and says yes, no, or "I cannot tell".

# %%
from sftkit.gate import gate_run

result = gate_run(folder / "first")
print(f"{result.state}\n")
for rule in result.rules:
    print(f"{rule.state:<10} {rule.name}: {rule.sentence}")

# %% [markdown]
# ## 7 · Other domains, and what is different
#
# The same functions on a medical and a legal set; only the name of the data changes. Watch what does not carry over:
#
# - **Medicine** (`icd10`): titles of diagnoses, to be sorted into 22 chapters. The words carry nearly everything, classes are very unequal, and the codes
#   follow a plan, so neighbours look alike. Not for coding real patients.
# - **Law** (`privacy-qa`): a question and a passage of a policy; is the passage relevant? Nothing of that lies in single words. Many rows share a
#   question, and the test split of a public benchmark stays a test: learn the craft, present no score.
# - **Finance** (`fiqa`): answers of a forum, whose terms do not come with the file. So nothing is trained on it here. Reading a licence is a
#   part of the job.

# %%
others = {}
for other, steps in domains.items():
    seen = guess_recipe(other, other)
    short = dataclasses.replace(seen.recipe.train, max_steps=steps)
    quiet = dataclasses.replace(seen.recipe.evaluate, behaviour="")
    trial = dataclasses.replace(seen.recipe, train=short, evaluate=quiet)
    others[other] = run(trial, folder / other)
    print(f"{other}: {dict(seen.reasons)['division']}")

# %%
gains = {}
for title, one in {name: record, **others}.items():
    found = one.learned.labels
    if found is None:
        continue
    gain = found.gain("accuracy", "tf-idf")
    gains[title] = (gain.delta, *gain.ci95)
    print(
        f"{title:<12} {found.items:>6,} test rows, {len(found.classes):>2} classes: right {gain.after:.1%}, "
        f"counting words {gain.before:.1%}, gain {gain.delta:+.3f} [{gain.ci95[0]:+.3f}, {gain.ci95[1]:+.3f}]"
    )

# %% [markdown]
# ### Exercise 10.4
#
# In which of the domains is the fine-tune *shown* to beat counting words? A set of names; it may be empty.

# %% tags=["exercise"]
### BEGIN SOLUTION
beaten = {_name for _name, (_, _low, _) in gains.items() if _low > 0}
### END SOLUTION
check("10.4", beaten, gains=gains)

# %% [markdown]
# ## Summary
#
# - Two commands lead from a file to a tested run: `sftkit new` and `sftkit run`. Every guess on the way can be read and changed.
# - What belongs together stays on one side of a split.
# - The test is planned before the training; small tests show large effects only.
# - Your own behaviour tests are the part that nobody can write for you.
# - Counting words is the rival to beat. Where it is as good, take it.

# %%
from sftkit.exercises import progress
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory {peak_memory_bytes() / 1e9:.2f} GB; seed 0")
progress("10")
