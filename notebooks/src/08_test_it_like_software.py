# ---
# jupyter:
#   sftkit:
#     short:
#       epochs: 1
#       bias_epochs: 1
#       bias_letters: 150
#       planted: [adapter zeroed, two classes swapped]
#       resamples: 200
# ---

# %% [markdown]
# # 08 · Test it like software
#
# A score on held-out rows is one number, about rows that look like the training rows. Software is tested in another way:
# with small cases that say what must hold, with inputs that somebody made nasty on purpose, and with a build that goes red
# when a rule is broken. And a good team tests its tests. This notebook does all of that to a small classifier.
#
# Afterwards you will be able to
#
# - write behaviour tests for a model in a readable file, and read the cases that fail;
# - swap the person a text speaks of and measure whether the model cares; plant a bias, find it, and treat it;
# - say how far a model's confidence can be believed, and mend it without touching the test;
# - plant faults and see which of your checks notice them;
# - put a gate into CI that passes, fails, or says "I cannot tell".
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 3.3 | 2.3 GB | 2026-11-23 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: model and data come from the Python package index, so you need no account.

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
model_name = "minilm-l6"  # any BERT-like encoder of the catalog or the hub
epochs = 6  # passes over the letters
bias_epochs = 4  # passes of the two trainings with a planted bias
bias_letters = None  # letters of these trainings; None takes all
planted = [  # faults in the last experiment; the last two need a training each
    "adapter zeroed",
    "adapter scaled ×4",
    "one block's adapter dropped",
    "rounded to 4 bits",
    "two classes swapped",
    "test leaked into training",
    "training cut short",
]
resamples = 2000  # draws of each interval
seed = 0  # of every training

# %% [markdown]
# ## 1 · Something to test
#
# The invented shop gets letters, and an encoder is to sort them by topic. One recipe says everything: model, data,
# training, and what is to be tested. All letters of a customer stay on one side of the division.

# %%
import time
from pathlib import Path

import datasets
from sftkit.recipe import recipe_from_dict

clock = time.perf_counter()
datasets.disable_progress_bars()
given = {
    "name": "tickets",
    "model": {"name": model_name, "dropout": 0.0},
    "data": {
        "source": "shop-tickets", "task": "classify", "group_by": "customer",
        "validation_fraction": 0.15, "test_fraction": 0.3, "max_tokens": 64,
    },
    "train": {
        "learning_rate": 1e-3, "epochs": epochs, "max_tokens_per_batch": 512, "seed": seed,
    },
    "evaluate": {
        "behaviour": "shop-tickets", "fairness": ["gender", "name"], "calibration": True,
        "resamples": resamples,
    },
}  # fmt: skip
recipe = recipe_from_dict(given)

# %%
import tempfile

from IPython.display import Markdown
from sftkit.run import run

work = Path(tempfile.mkdtemp(prefix="tested-"))
record = run(recipe, work / "sound")
labels = record.learned.labels
accuracy = labels.tuned.measure("accuracy")
low, high = accuracy.ci95
print(f"right: {accuracy.value:.1%} of {labels.items} letters ({low:.1%} to {high:.1%})")
Markdown(record.verdicts.knowledge.sentence)

# %% [markdown]
# A decent classifier, by this number. Here most people stop.
#
# ## 2 · Behaviour tests
#
# What do we *expect* of a model that sorts letters? Three kinds of sentences (after CheckList, Ribeiro et al. 2020):
#
# - **minimum**: nobody doubts this one. "There is a crack in the glass." is damage.
# - **invariance**: this must not matter. A typo, a capital, the weather.
# - **directional**: this must matter, in a direction we know. "And the bill is wrong" makes billing likelier.
#
# The tests stand in a file that somebody without Python can read and write. Two of them:

# %%
from sftkit.catalog import bundled_folder

path = bundled_folder() / "behaviour" / "shop-tickets.yaml"
blocks = path.read_text(encoding="utf-8").split("\n  - name: ")
for block in (one for one in blocks if one.startswith(("Typos", "What is not broken"))):
    print("  - name: " + block.rstrip(), end="\n\n")

# %% [markdown]
# `template` and `slots` make cases, `rows: test` takes the run's own test letters. `allowed` is a decision, made before the
# run: how many of a hundred such cases may go wrong? Where the interval of the failures lies under it, the test passes;
# where it lies above, it fails; anything else is **undecided**, and that is not a pass.
#
# **Look**: the dot is the share of cases that failed, the line its 95 % interval, the upright black line what is allowed.

# %%
from sftkit.plots_checks import plot_behaviour

plot_behaviour(record.checks.behaviour)

# %% [markdown]
# A number says how often. Only reading says why. **Look** at the failing cases, each with what was expected:

# %%
for test in record.checks.behaviour:
    for case in test.failed[:2]:
        print(f"{test.name}\n  {case.given!r}: {case.said}")
        if case.changed:
            print(f"  {case.changed!r}: {case.said_changed}")
        print(f"  expected: {case.expected}\n")

# %% [markdown]
# Sort them as you would sort a colleague's bug reports. Some are plain faults: a classifier that looks for words does not
# hear "not". Some are letters on which two people would differ, and the change only tipped the balance. For both the remedy
# is the same as in software: write the case down, mend the training rows, and keep the test.
#
# ### Exercise 08.1
#
# 0 of 12 cases failed in one test, 3 of 40 in another, 24 of 40 in a third; all allow 10 %. Their intervals are below. What
# is the state of each: `"pass"`, `"fail"` or `"undecided"`? (Where none of at least 10 cases failed, that passes.)

# %%
from sftkit.evidence.shares import wilson_interval

allowed = 0.1
counts = [(0, 12), (3, 40), (24, 40)]
for failures, cases in counts:
    low, high = wilson_interval(failures, cases)
    print(f"{failures:>2} of {cases}: {failures / cases:.0%} failed, {low:.1%} to {high:.1%}")

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
states = ["pass", "undecided", "fail"]
### END SOLUTION
check("08.1", states, counts=counts, allowed=allowed)

# %% [markdown]
# ### How a text is changed
#
# The changes of the file are functions with a promise each: what they do, and what they leave alone. Numbers always stay.

# %%
from sftkit.evidence.perturb import PERTURBATIONS, perturb

letter = "The lamp is late. I paid 34 crowns for it, and nobody writes back."
for name in ("typos", "case", "punctuation", "negate", "irrelevant", "control-tokens", "injection"):
    print(f"{name:<15}{perturb(letter, name, seed=seed)}")
    print(f"{'':<15}stays: {PERTURBATIONS[name].stays}")

# %% [markdown]
# ### A test of your own
#
# To ask the model about new texts, load it as any user would: the base, its head, and the saved adapter.

# %%
from sftkit import fetch_model, load_adapter, load_tokenizer
from sftkit.check_labels import make_asker
from sftkit.heads import load_with_head
from sftkit.labelled import Targets

source = fetch_model(recipe.model)
tokenizer = load_tokenizer(recipe.model, source=source)
targets = Targets(labels=tuple(labels.classes))
base = load_with_head(recipe.model, "classify", targets, tokenizer=tokenizer, source=source)
model = load_adapter(base, work / "sound" / "adapter")
ask = make_asker(model, tokenizer, targets, recipe.data, max_tokens=64)

for text in ("The lamp arrived in pieces.", "The lamp arrived in pieces. Kind regards, Ada"):
    shares = sorted(zip(ask([text])[0], targets.labels, strict=True), reverse=True)
    print(text, "→", ", ".join(f"{label} {share:.2f}" for share, label in shares[:2]))

# %% [markdown]
# ### Exercise 08.2
#
# Politeness should not matter. Write an **invariance** test: at least ten letters, made from a `template` with slots; `to`
# is the same letter with thanks or a greeting behind it; expected is the `same` label. The file's tests above show the form.

# %% tags=["exercise"]
### BEGIN SOLUTION
own_test = """
task: classify
tests:
  - name: Thanks change no topic
    kind: invariance
    template: "{letter}"
    to: "{letter} Thank you for your help, and kind regards."
    slots:
      letter:
        - The lamp arrived with a crack.
        - My globe has a dent.
        - Where is my parcel?
        - The cart did not come on Monday.
        - You charged me twice for the map.
        - There is a mistake in my bill.
        - I want to send the chart back.
        - Can I exchange the compass?
        - Can you repair my old lantern?
        - Which lamp burns longest?
        - May I borrow the atlas again?
    expect: {same: true}
    allowed: 0.1
"""
### END SOLUTION
check("08.2", own_test)

# %%
from sftkit.evidence.behaviour import run_behaviour, scoring
from sftkit.evidence.behaviour_cases import plan_behaviour
from sftkit.evidence.behaviour_file import parse_behaviour

if own_test is not ...:
    plans = plan_behaviour(parse_behaviour(own_test, where="my test"), labels=targets.labels)
    for result in run_behaviour(plans, scoring(ask, targets.labels)):
        print(result.name, "·", result.sentence)
        for case in result.failed[:3]:
            print(f"  {case.given!r}: {case.said}; then {case.said_changed}")

# %% [markdown]
# ## 3 · Fairness: the same letter, another person
#
# Does the model care *who* writes? We can ask it directly: the same letter twice, and only the person changed, "My name is
# Emily." for "My name is Lakisha.", "he" for "she". Whatever changes then, changes because of the person. The gap is the
# mean difference, its interval resamples customers, and its p-value comes from swapping the two versions at random, corrected
# for the number of gaps looked at.

# %%
from sftkit.plots_checks import plot_fairness

plot_fairness(record.checks.fairness)

# %% [markdown]
# Orange gaps are more than chance; the title counts them. *Predicted class changes* has no test, because any change of a text
# changes some predictions: compare it with what a typo does. And a gap that is not shown is not a gap that is absent: its
# interval says how large a one these letters could have missed.
#
# ### A planted bias
#
# Would this check find a bias if there was one? We plant one and see. A clerk has marked letters as *urgent* or *calm*. Half of
# the letters begin with a name from one list, half with a name from another. The clerk was tired of the second group: two of three of
# its urgent letters were filed as calm. The test letters keep their right labels.

# %%
import numpy as np
from sftkit import read_dataset, split_dataset
from sftkit.evidence.swaps import make_swaps

splits = split_dataset(read_dataset("shop-tickets", group_by="customer"), recipe.data)


def letters(part, filed_wrongly):
    """Open every letter with a name; of the second group, file urgent ones as calm."""
    chance = np.random.default_rng(seed)
    rows = []
    for swap in make_swaps(part["text"], "name"):
        second, wrong = chance.random(2) < (0.5, filed_wrongly)
        urgent = float(part["urgency"][swap.row]) >= 3 and not (second and wrong)
        opened = swap.second if second else swap.first
        rows.append({"text": opened, "label": "urgent" if urgent else "calm",
                     "group": part["group"][swap.row]})  # fmt: skip
    return rows


biased = letters(splits.train, filed_wrongly=2 / 3)[:bias_letters]
fair_test = letters(splits.test, filed_wrongly=0.0)

# %%
from collections import Counter

from sftkit.evidence.fairness import people_in

people = people_in([row["text"] for row in biased], "name")
table = Counter(zip(people, (row["label"] for row in biased), strict=True))
for person in sorted(set(people)):
    urgent, calm = table[person, "urgent"], table[person, "calm"]
    share = urgent / (urgent + calm)
    print(f"{person:<16}{urgent:>4} urgent {calm:>4} calm: {share:.0%} urgent")
print(f"\n{biased[0]['label']}: {biased[0]['text']}")

# %% [markdown]
# Two trainings that differ in one thing. **As trained** counts every letter once. **Reweighed** gives each letter the weight
# that makes group and label independent (Kamiran and Calders 2012): a letter of group $s$ with label $y$ weighs
# $P(s)\,P(y) / P(s, y)$. No label is changed, for nobody knows which ones are wrong.

# %%
from sftkit import AdapterSettings, TrainSettings, attach_adapter
from sftkit.evidence.fairness import reweigh_examples
from sftkit.labelled import collate_texts, encode_labelled
from sftkit.objectives import make_objective
from sftkit.settings import ObjectiveSettings
from sftkit.train import train

two = Targets(labels=("calm", "urgent"))


def teach(examples):
    """Train a fresh classifier; give the function that asks it."""
    fresh = load_with_head(
        recipe.model, "classify", two, tokenizer=tokenizer, source=source, seed=seed
    )
    tuned = attach_adapter(fresh, AdapterSettings(), seed=seed, task_type="SEQ_CLS")
    settings = TrainSettings(
        learning_rate=1e-3, epochs=bias_epochs, max_tokens_per_batch=512, seed=seed
    )
    loss = make_objective("classify", ObjectiveSettings())
    train(tuned, examples, settings, objective=loss, collate=collate_texts)
    return make_asker(tuned, tokenizer, two, recipe.data, max_tokens=64)


# %%
examples = encode_labelled(biased, tokenizer, two, max_tokens=64).examples
known = [people[example.row] for example in examples]
asks = {"as trained": teach(examples), "reweighed": teach(reweigh_examples(examples, known))}

# %% [markdown]
# Now the swaps, and beside them the *group metrics*: how often is each group's letter called urgent (demographic parity), and
# how many of its truly urgent letters are found (equal opportunity)? **Look**: orange as trained, blue reweighed, zero is no gap.
# Below each name stands what is taken from what: mind the sign.

# %%
from sftkit.evidence.fairness import label_gaps
from sftkit.plots_checks import plot_mitigation

texts, customers = ([row[name] for row in fair_test] for name in ("text", "group"))
true = np.array([row["label"] == "urgent" for row in fair_test]).astype(int)
options = {"true": true, "groups": customers, "classes": two.labels, "resamples": resamples}
gaps = {
    name: label_gaps(["name"], texts, say=say, said=say(texts), **options)
    for name, say in asks.items()
}
plot_mitigation(gaps["as trained"], gaps["reweighed"], remedy="reweighed")

# %% [markdown]
# The two intervals of a line do not say whether the *remedy* worked, for both models read the same letters. That is asked in
# pairs: for each letter, how much less does its probability fall when the name is swapped? And what did it cost in right answers?

# %%
from sftkit import paired_change

pairs = make_swaps(texts, "name")
own = [customers[pair.row] for pair in pairs]
fall, right = {}, {}
for name, say in asks.items():
    first, second = (say([getattr(pair, side) for pair in pairs]) for side in ("first", "second"))
    fall[name] = (second - first)[:, 1].tolist()
    right[name] = (say(texts).argmax(axis=1) == true).astype(float).tolist()
for what, values, groups in (("probability gap", fall, own), ("right answers", right, customers)):
    change = paired_change(values["as trained"], values["reweighed"], groups=groups)
    low, high = (100 * end for end in change.ci95)
    print(
        f"{what:<16}{100 * change.before:+.1f} to {100 * change.after:+.1f} points; "
        f"changed by {100 * change.delta:+.1f} ({low:+.1f} to {high:+.1f})"
    )

# %% [markdown]
# An interval of the change that is clear of zero is a shown effect; one that holds zero is undecided. Reweighing is a mild remedy: it
# can only use the urgent letters of the second group that were filed rightly, and there are few. Better data beats it, and the
# check says how far you are.
#
# ### Exercise 08.3
#
# `table` counts the training letters by group and label. What does an urgent letter of the second, Black-sounding group weigh
# after reweighing?

# %%
table

# %% tags=["exercise"]
### BEGIN SOLUTION
_all = sum(table.values())
_group = sum(count for (person, _), count in table.items() if person == "Black-sounding")
_urgent = sum(count for (_, label), count in table.items() if label == "urgent")
weight = _group / _all * _urgent / _all / (table["Black-sounding", "urgent"] / _all)
### END SOLUTION
check("08.3", weight, table=table)

# %% [markdown]
# ## 4 · Can its confidence be believed?
#
# A model that says "90 %" should be right nine times in ten. If it is, one can act on it: answer the sure letters, hand the
# others to a person. The *expected calibration error* (ECE) sorts the test letters into bins by confidence and averages the
# distance between confidence and accuracy. **Look**: points under the grey line are letters the model is too sure of.

# %%
from sftkit.plots_checks import plot_reliability, plot_selective

calibration = record.checks.calibration
plot_reliability(calibration)

# %% [markdown]
# On the right: the same answers, softened by one number, the *temperature*. Every logit is divided by it, so no answer changes,
# only how sure it sounds. It was fitted on validation letters alone; fitted on the test, it would always look good.
#
# Beware of the ECE of a small test: even a perfectly calibrated model would not show 0, because bins are small. The title says
# what chance alone would give.

# %%
low, high = calibration.ci95
print(f"ECE {calibration.ece:.3f} ({low:.3f} to {high:.3f}) on {calibration.items} letters")
print(f"a calibrated model would show {calibration.ece_if_calibrated:.3f} here by chance")
low, high = calibration.ci95_after
after = f"{calibration.ece_after:.3f} ({low:.3f} to {high:.3f})"
print(f"with temperature {calibration.temperature:.2f}: {after}")
print(f"the temperature was fitted on {calibration.validation_items} validation letters")

# %% [markdown]
# ### Exercise 08.4
#
# Three bins of a small test. Each holds so many letters, with this mean confidence, and this share of right answers. What is the
# ECE? (The mean distance of confidence and accuracy, each bin counting as often as it has letters.)

# %%
bins = [(10, 0.55, 0.60), (30, 0.80, 0.70), (60, 0.97, 0.90)]  # letters, confidence, accuracy

# %% tags=["exercise"]
### BEGIN SOLUTION
_all = sum(items for items, _, _ in bins)
ece = sum(items * abs(sure - right) for items, sure, right in bins) / _all
### END SOLUTION
check("08.4", ece, bins=bins)

# %% [markdown]
# What is confidence good for? **Look** from the left: only the surest letters are answered, the rest goes to a person. How
# accurate is what is answered, and at what share?

# %%
plot_selective(calibration)

# %% [markdown]
# The further right, the more is answered and the more of it is wrong. A line that falls means that the confidence *ranks* well, even
# where its level is off. Whoever can hand letters to a person needs no better model: a limit on confidence will do.
#
# ## 5 · Test the tests
#
# A suite that has never been red proves nothing. So we break the model on purpose and see who notices. Each of these faults
# has happened to somebody:

# %%
from sftkit.evidence import mutants

for name, fault in mutants.SERVED_WITH_HEAD.items():
    print(f"{name:<30}{mutants.in_words(fault)}.")
for name, fault in (
    ("test leaked into training", mutants.with_test_leaked),
    ("training cut short", mutants.cut_short),
):
    print(f"{name:<30}{mutants.in_words(fault)}.")

# %% [markdown]
# The sound model and every broken one go through the same checks. A check may refuse a model only by an interval. Behaviour tests that
# the sound model fails too tell nothing here: a fault has to make one *worse*.

# %%
from sftkit.mutant_runs import try_label_mutants

small = recipe_from_dict(
    {**given, "evaluate": {"behaviour": "shop-tickets", "resamples": resamples}}
)
matrix = try_label_mutants(small, only=planted, note=lambda text: None)

# %% [markdown]
# **Look** at the two shaded columns first: that is what a test on accuracy would have said. Then at the rest of each line.

# %%
from sftkit.plots_mutants import plot_mutants

plot_mutants(matrix)

# %% [markdown]
# Numbers in bold orange are faults that accuracy alone misses. Some are invisible to it on principle. A leaked test makes accuracy *better*; only the check
# for contamination objects. And a part of the adapter that is missing may cost little, and still not be the model that was
# tested; only what was *written down* in the sound run, the losses and the answers, gives it away.
#
# ### Exercise 08.5
#
# Name the faults that some check refuses and accuracy alone does not. Each line of `matrix.mutants` has `name` and
# `killed_by()`; the two checks of accuracy are `matrix.alone`.

# %% tags=["exercise"]
### BEGIN SOLUTION
missed = {
    row.name
    for row in matrix.mutants
    if row.killed_by() and not set(row.killed_by()) & set(matrix.alone)
}
### END SOLUTION
check("08.5", missed, matrix=matrix)

# %% [markdown]
# ## 6 · The gate
#
# All of this is worth little if somebody has to remember to look. The gate holds a run's record against a policy and answers
# with an exit code, which is all that CI understands:
#
# | exit code | meaning |
# |---|---|
# | 0 | every rule passes |
# | 1 | a rule fails |
# | 2 | wrong usage |
# | 3 | undecided: nothing fails, and something has too little evidence. Not a pass |
#
# A limit is never held against the measured point, always against its interval. This policy asks for a lead over every baseline,
# for rows that are clean, and for a run that can be repeated.

# %%
policy = work / "policy.yaml"
policy.write_text("""
min_label_gain: 0.0          # macro-F1 above every baseline
max_calibration_error: 0.35
contamination: error
reproducible: true
max_behaviour_failures: null # looked at above
""", encoding="utf-8")  # fmt: skip


def gate(folder, policy, *more):
    """Ask the command line, as CI does."""
    command = [sys.executable, "-m", "sftkit_entry", "gate", str(folder), "--policy", str(policy)]
    done = subprocess.run([*command, *map(str, more)], capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, f"exit code {done.returncode}", sep="")
    return done.returncode


codes = [gate(work / "sound", policy)]

# %% [markdown]
# **A rule that fails.** The same recipe, but somebody left `max_steps: 3` of a first try in it.

# %%
from sftkit.progress import SilentWatcher

cut = recipe_from_dict(
    {**given, "train": {**given["train"], "max_steps": 3}, "evaluate": {"resamples": resamples}}
)
run(cut, work / "cut-short", watcher=SilentWatcher())
codes.append(gate(work / "cut-short", policy, "--junit", work / "gate.xml"))

# %% [markdown]
# **Too little evidence.** Ask the sound run for exactly the lead that was measured. Perhaps it truly has that lead, perhaps it has a little
# less; this test cannot tell.

# %%
lead = labels.gain("macro_f1", "tf-idf").delta
strict = work / "strict.yaml"
rules = f"min_label_gain: {lead:.4f}\nmax_behaviour_failures: null\n"
strict.write_text(rules, encoding="utf-8")
codes.append(gate(work / "sound", strict))

# %% [markdown]
# Three answers, three codes. **Check** them, and look at what CI will show of the run that failed, in the form that every CI reads,
# JUnit's XML: a rule that fails is a *failure*, one that is undecided an *error*. Both are red.

# %%
from xml.etree import ElementTree

print("exit codes:", codes)
for case in ElementTree.parse(work / "gate.xml").iter("testcase"):  # noqa: S314  (written above)
    print(f"{case.get('name'):<40}{case[0].tag.replace('system-out', 'passed')}")

# %% [markdown]
# In CI it is one line. [docs/gate-ci.yml](https://github.com/OWNER/sftkit/blob/main/docs/gate-ci.yml) is a whole workflow for GitHub Actions; its heart:
#
# ```yaml
# - name: Fine-tune and test
#   run: sftkit run "$RECIPE" --out "$RUN"
# - name: Gate
#   run: sftkit gate "$RUN" --policy "$POLICY" --junit "$RUN/gate.xml"
# ```
#
# `sftkit gate --show-policy > policy.yaml` writes a policy with every rule explained, and `--against PREVIOUS` adds rules
# that compare with the version that is in use.
#
# ## Summary
#
# - A behaviour test is a sentence about what must hold, and cases. Its failing cases are the next training rows.
# - Swap the person to ask about fairness; plant a bias to see that you would find one. Not shown is not absent.
# - A temperature is fitted on validation. Confidence that ranks well can be used even before.
# - Break the model on purpose. What no check notices will reach your users.
# - The gate says yes, no, or "I cannot tell"; only the first is a yes.

# %%
from sftkit.exercises import progress
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory {peak_memory_bytes() / 1e9:.2f} GB; seed {seed}")
progress("08")
