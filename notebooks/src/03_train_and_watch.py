# ---
# jupyter:
#   sftkit:
#     short:
#       fit_steps: 12
#       rates: [1.0e-3, 1.0e-1]
#       sweep_steps: 2
#       climb_steps: 13
#       fit_facts: 4
#       fit_epochs: 10
#       evaluations: 5
#       held_out_rows: 1
#       run_steps: 5
#       save_every: 2
#       kill_after: 3
#       out: runs/short/watched
# ---

# %% [markdown]
# # 03 · Train and watch
#
# A training loop that is broken looks just like one that works: numbers scroll by, and at the end there is an adapter.
# You will see what a healthy loop does, plant faults in it on purpose, and learn which number gives each of them away.
# Then you will kill a run in the middle, and lose nothing.
#
# Afterwards you will be able to
#
# - prove in a minute that a loop can learn at all, before you spend hours on it;
# - find a learning rate, and see where too much of it begins;
# - tell underfitting from overfitting in two curves, and try four cures on it;
# - say what happens when memory runs out, and why the result stays the same;
# - kill a run, go on with it, and check that nothing is different.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 5.2 (10.0 with other programs beside it) | 2.2 GB, and 1.4 GB for a second process | 2026-11-23 |
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
fit_steps = 14  # steps on one batch, in section 1
rates = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2]  # learning rates of section 2, 0.001 among them
sweep_steps = 10  # steps at each of them
climb_steps = 32  # steps of the run whose rate climbs
fit_facts = 16  # facts taught in section 3, two questions each
fit_epochs = 6  # passes over these few rows
evaluations = 6  # how often section 3 measures held-out rows
held_out_rows = 2  # questions about each held-out fact
run_steps = 14  # steps of the run that will be killed, in section 5
save_every = 4  # steps between its checkpoints
kill_after = 10  # steps after which it is killed
seed = 0  # of adapters, batches and dropout
out = "runs/watched"  # folder for section 5

# %% [markdown]
# ## 1 · One batch first
#
# Before anything long, ask the loop for the easiest thing there is: to learn eight rows by heart. A model with millions
# of trainable numbers can do that in a few steps. If the loss of these eight rows does not go to nearly zero, something is
# broken, and no amount of data or patience will mend it.
#
# First the model, and questions about Dunnowick, the shop that does not exist. This time we divide *by fact*: what is
# asked in the held-out rows was never taught at all.

# %%
import time

clock = time.perf_counter()
from sftkit import fetch_model, load_model, load_tokenizer, pick_dtype
from sftkit import read_dataset, split_dataset
from sftkit.encoding import encode_dataset
from sftkit.settings import DataSettings, ModelSettings

settings = ModelSettings(name=model_name)
source = fetch_model(settings)
tokenizer = load_tokenizer(settings, source=source)
choice = pick_dtype(settings)
base = load_model(settings, dtype=choice.dtype, source=source)
by_fact = DataSettings(source="shop", group_by="group", validation_fraction=0.25, test_fraction=0.2)
splits = split_dataset(read_dataset("shop", group_by="group"), by_fact)
taught = encode_dataset(splits.train, tokenizer, max_tokens=128, system="")
others = encode_dataset(splits.validation, tokenizer, max_tokens=128, system="")
print(f"{base.num_parameters():,} parameters on {base.device}, {choice.name}: {choice.reason}")
print(f"{len(taught)} rows to learn from; {len(others)} rows about facts that are never taught")

# %% [markdown]
# Of each fact we take a few questions: eight facts once for the batch, and some questions about every held-out fact for
# later.

# %%
from collections import defaultdict


def of_each_fact(examples, rows):
    """Take the first rows about every fact."""
    facts = defaultdict(list)
    for example in examples:
        facts[example.group].append(example)
    return [example for own in facts.values() for example in own[:rows]]


batch = of_each_fact(taught, 1)[:8]
held_out = of_each_fact(others, held_out_rows)
for example in batch[:3]:
    print(tokenizer.decode([label for label in example.labels if label >= 0]))
print(f"{len(batch)} rows, {sum(one.length for one in batch)} tokens, {len(held_out)} held out")

# %% [markdown]
# The loop, with a fresh adapter each time. It is taken off again afterwards, so the base is loaded only once. The figure
# is drawn while the model trains: the loss above, and below the learning rate, the speed and the memory.

# %%
from contextlib import closing

from sftkit import AdapterSettings, attach_adapter, chat_loss, make_watcher
from sftkit.adapter import take_apart
from sftkit.settings import TrainSettings
from sftkit.train import train

adapter = AdapterSettings(kind="lora", r=8, lora_alpha=16)
print(adapter)

# %%


def learn_batch(rate, steps, *, rows=batch, frozen=(), objective=chat_loss, on_step=None, **more):
    """Train a fresh adapter on one batch, again and again."""
    how = {"max_tokens_per_batch": 512, "schedule": "constant", "warmup_fraction": 0.0}
    how |= {"seed": seed, **more}
    model = attach_adapter(base, adapter, seed=seed)
    for name, parameter in model.named_parameters():
        if any(part in name for part in frozen):
            parameter.requires_grad_(False)
    try:
        chosen = TrainSettings(learning_rate=rate, epochs=steps, **how)
        return train(model, rows, chosen, objective=objective, on_step=on_step)
    finally:
        take_apart(base)


with closing(make_watcher()) as watcher:
    healthy = learn_batch(3e-3, fit_steps, on_step=watcher.on_step)

# %% [markdown]
# That is what health looks like. Note the second number to watch, which this figure does not show: the *norm of the
# gradient*, how hard the loss pulls at the weights. It is in every step of the record.
#
# ### Faults, planted
#
# Some faults cannot get past the door. Labels that are all masked would train on nothing at a loss of 0.0, and a rate of 0
# moves nothing. Both have cost people days, so both are refused before the first step:

# %%
from sftkit.errors import SftkitError

attempts = {
    "all labels masked": {"rate": 3e-3, "rows": [example.silenced() for example in batch]},
    "a rate of 0": {"rate": 0.0},
    "nothing to train": {"rate": 3e-3, "frozen": ["lora_"]},
}
for name, planted in attempts.items():
    try:
        learn_batch(steps=2, **planted)
    except SftkitError as error:
        print(f"{name}: {type(error).__name__}\n  {error}\n")

# %% [markdown]
# Others are not faults in the eyes of any program. Two of that kind: a rate that is a thousand times too low, and an adapter
# of which only `A` is trained. Its `B` starts at zero, as notebook 02 showed, so here the product of the two stays zero,
# however busily `A` is trained. Which of the two do you expect to look worse?

# %%
from sftkit.plots_watching import plot_one_batch

ill_steps = max(2, fit_steps // 3)
only_a = learn_batch(3e-3, ill_steps, frozen=["lora_B"])
print(f"only A trained: {only_a.trainable_parameters:,} numbers, and nobody complains")
runs = {
    "as it should be": healthy.steps,
    "only A trained": only_a.steps,
    "rate / 1000": learn_batch(3e-6, ill_steps).steps,
}
plot_one_batch(runs)

# %% [markdown]
# In the left panel the two ill runs look alike. In the right one they do not: in one of them nothing pulls at the weights,
# in the other something pulls and nothing gives way. That is why one watches both.
#
# ### Exercise 03.1
#
# Diagnose the three runs by program and not by eye: hand in a dictionary with one of the words `"healthy"`,
# `"no gradient"` or `"too slow"` for each name in `runs`. Every step has a `loss` and a `grad_norm`.

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
diagnoses = {}
for _name, _steps in runs.items():
    if max(step.grad_norm for step in _steps) == 0:
        diagnoses[_name] = "no gradient"
    else:
        diagnoses[_name] = "healthy" if _steps[-1].loss < 0.1 else "too slow"
### END SOLUTION
check("03.1", diagnoses, runs=runs)

# %% [markdown]
# ## 2 · Which learning rate?
#
# The one number worth a search. Train a few steps at each of several rates, a factor of about three apart, from the same start
# on the same rows, and measure answers that are *not* trained on. This is choosing, so it is done on validation rows; a
# test that had a part in it would be no test any more.

# %%
from sftkit.plots_watching import plot_rate_sweep
from sftkit.sweep import sweep_rates

short = TrainSettings(
    max_steps=sweep_steps, epochs=4, max_tokens_per_batch=256, heldout_evaluations=1, seed=seed
)
sweep = sweep_rates(base, rates, taught, held_out, adapter=adapter, settings=short)
plot_rate_sweep(sweep)

# %% [markdown]
# Read it from the left. With too low a rate little happens in so few steps: that is slowness, and more steps would cure it.
# Then comes a wide floor. Then a cliff: on the right the model is worse than the one nobody trained, and no number of
# steps will mend that. Hence the usual advice to stay a little left of the lowest point: left of it you lose time, right of
# it you lose the run.
#
# Is the lowest point really the best? Each rate can be compared with the kit's default of 0.001, answer by answer:

# %%
from sftkit.sweep import compare_runs

default = TrainSettings().learning_rate
compared = {rate: compare_runs(sweep[default], run, held_out) for rate, run in sweep.items()}
for rate, change in compared.items():
    if change is not None:
        low, high = change.ci95
        print(
            f"{rate:<7g} against {default:g}: {change.delta:+.2f}, 95 % {low:+.2f} to {high:+.2f}"
        )

# %% [markdown]
# ### Exercise 03.2
#
# Which rate has the lowest held-out loss, and is it better than the default *beyond chance*? Hand in the rate, and `True` or
# `False`.

# %% tags=["exercise"]
### BEGIN SOLUTION
best = min((r for r in sweep if sweep[r].heldout), key=lambda r: sweep[r].heldout.after)
is_better = compared[best].ci95[1] < 0
### END SOLUTION
check("03.2", (best, is_better), sweep=sweep, compared=compared)

# %% [markdown]
# ### When it breaks, will you be told?
#
# A sweep takes many runs. There is a quicker look, the *range test* (Smith 2017): one run in which the rate climbs, until
# the loss jumps. A warm-up over the whole run does just that. From the eleventh step on, the loop compares every loss with
# those before it, and reports a jump in words: it is in `events` of the record, and in a run it is printed as it happens.

# %%
climb = learn_batch(4.5e-2, climb_steps, warmup_fraction=0.99)
for step in climb.steps[:: max(1, climb_steps // 8)]:
    print(f"step {step.step:>3}  rate {step.learning_rate:.4f}  loss {step.loss:7.3f}")
print(f"\njumps reported: {len(climb.events)}", *climb.events[:1], sep="\n")

# %% [markdown]
# Your eye saw it some steps earlier. The rule is slow on purpose: it takes a loss that stands far outside of all that was
# usual before, and after so steep a fall much was usual. It is meant for hour-long runs that nobody looks at.
#
# The message names the rows of the batch. Here they are innocent: they are the same rows in every step, and the rate was
# to blame. If in your own run the loss jumps and the rate is calm, look at those rows first.
#
# ## 3 · Too little, too much
#
# Now the fault that no loop can see. We teach two questions each about sixteen facts, and go over them again and again. At first the
# model learns what helps everywhere: that answers here are short, and end. What remains after that are the facts
# themselves, and a model that has them by heart grows surer about all other facts, too, of which it knows nothing.
#
# Three trainings: one far too timid, one that goes on and on, and one that stops when the held-out loss has not improved
# twice in a row, and keeps the best weights.

# %%
from dataclasses import replace

from sftkit.plots_watching import plot_fits
from sftkit.sweep import try_settings

few = of_each_fact(taught, 2)[: 2 * fit_facts]
long = TrainSettings(
    learning_rate=3e-3, epochs=fit_epochs, max_tokens_per_batch=300, schedule="constant",
    heldout_evaluations=evaluations, seed=seed,
)  # fmt: skip
timid = replace(long, learning_rate=1e-4, epochs=2, heldout_evaluations=2)
stopping = replace(long, early_stopping="heldout_loss", early_stopping_patience=2)
trials = {
    "underfitted": (adapter, timid),
    "overfitted": (adapter, long),
    "early stopping": (adapter, stopping),
}
fits = try_settings(base, trials, few, held_out)
plot_fits(fits)

# %% [markdown]
# Blue is the loss of the rows that are trained, black the loss of rows that are not; the circle marks the weights that were
# kept. On the left both are high: *underfitting*, cured by more steps or a higher rate. In the middle blue lies on the
# floor while black climbs: *overfitting*. On the right is the same run as in the middle, until it stops. Really the same?

# %%
stopped, went_on = fits["early stopping"].steps, fits["overfitted"].steps
same = all(one.loss == two.loss for one, two in zip(stopped, went_on, strict=False))
print(
    f"early stopping ended after {len(stopped)} of {len(went_on)} steps; losses equal so far: {same}"
)

# %% [markdown]
# ### Exercise 03.3
#
# After which step was the held-out loss of the overfitted run lowest, among those after which it was measured? And by how
# much had it risen at the end? Look at `fits["overfitted"].steps`: `heldout_loss` is None where nothing was measured.

# %% tags=["exercise"]
### BEGIN SOLUTION
_held = {s.step: s.heldout_loss for s in fits["overfitted"].steps if s.heldout_loss is not None}
lowest = min(_held, key=_held.get)
lost = _held[max(_held)] - _held[lowest]
### END SOLUTION
check("03.3", (lowest, lost), run=fits["overfitted"])

# %% [markdown]
# ### Two more cures
#
# *Dropout* hides a part of each input from the adapter in training, at random, so that it cannot lean on any one detail.
# *Weight decay* pulls every trained number towards zero in each step. Both run as long as the overfitted run did. Then all
# are compared with it, answer by answer, and the interval resamples whole facts.

# %%
from sftkit.plots_watching import plot_compared

cures = {
    "dropout 0.3": (replace(adapter, lora_dropout=0.3), long),
    "weight decay 3": (adapter, replace(long, weight_decay=3.0)),
}
fits |= try_settings(base, cures, few, held_out)
too_long = fits["overfitted"]
changes = {n: compare_runs(too_long, fits[n], held_out) for n in ("early stopping", *cures)}
plot_compared(changes, against="the overfitted run")

# %%
for name, run in fits.items():
    print(f"{name:<15} training {run.steps[-1].loss:5.2f}   held-out {run.heldout.after:5.2f}")

# %% [markdown]
# Do not read a general law into this: sixteen facts, one seed, one strength of each cure. What does carry over is the way to find out.
# And mind the best cure, which is not in the list because it is no setting: *more and other rows*.
#
# ### Exercise 03.4
#
# A decay of 3 looks absurd; the usual value is 0.01. But AdamW multiplies each weight by `1 - learning_rate × weight_decay` in
# every step. What share of a weight would the usual decay have taken away over this whole run, and what share did ours take?
# Use `fits["weight decay 3"].steps` and `.settings`.

# %% tags=["exercise"]
import math

### BEGIN SOLUTION
_run = fits["weight decay 3"]
usual = 1 - math.prod(1 - step.learning_rate * 0.01 for step in _run.steps)
ours = 1 - math.prod(1 - step.learning_rate * _run.settings.weight_decay for step in _run.steps)
### END SOLUTION
check("03.4", (usual, ours), run=fits["weight decay 3"])

# %% [markdown]
# ## 4 · When memory runs out
#
# On a GPU the most common end of a training is *out of memory*, after hours, at the first batch of long rows. The loop does
# not end there. It cuts the step into twice as many micro-batches, each half as large, and tries the same step again. The
# gradient of a step is a sum over its rows, so it does not matter in how many pieces it is added up.
#
# We cannot well fill your memory to show it. So this is a *simulation*: an objective that raises torch's own error when
# more than two rows come at once. What follows the error is the real thing.

# %%
import torch


def little_memory(model, inputs):
    """Compute the loss, as long as at most two rows are asked for."""
    rows = len(inputs["input_ids"])
    if rows > 2:
        raise torch.OutOfMemoryError(f"simulated: no room for {rows} rows")
    return chat_loss(model, inputs)


tight = learn_batch(3e-3, 4, objective=little_memory)
print(*tight.events, sep="\n")
print("\nstep   all at once   with little memory")
for whole, pieces in zip(healthy.steps, tight.steps, strict=False):
    print(f"{whole.step:>4}   {whole.loss:11.6f}   {pieces.loss:18.6f}")

# %% [markdown]
# **Check.** The losses agree up to rounding, which is coarser in 16 bits than in 32. If halving does not help, the loop
# computes activations twice instead of keeping them, and if even that does not fit, it ends, and says what would.

# %%
apart = [
    abs(one.loss - two.loss) / one.loss
    for one, two in zip(healthy.steps[:4], tight.steps, strict=True)
]
print(f"largest difference: {max(apart):.2%} of the loss")
assert len(tight.events) == 2, "memory should have run out twice: with eight rows and with four"
assert max(apart) < 0.05, "pieces of a step should add up to the whole"

# %% [markdown]
# ## 5 · Kill it
#
# Power fails, sessions end, somebody else's job takes the machine. So now a whole run, from a recipe, with a checkpoint
# every few steps. First undisturbed, here in the notebook.

# %%
from pathlib import Path

from sftkit.recipe import yaml_text
from sftkit.run import run
from sftkit.settings import EvaluateSettings, Recipe

work = Path(out) / time.strftime("%Y-%m-%d-%H%M%S")  # a new folder: nothing is overwritten
work.mkdir(parents=True)
recipe = Recipe(
    name="watched",
    model=replace(settings, dtype=choice.name),
    data=DataSettings(source="shop", split_by="split", max_tokens=128, system=""),
    adapter=replace(adapter, lora_dropout=0.1),
    train=TrainSettings(
        learning_rate=3e-3, max_steps=run_steps, max_tokens_per_batch=256, epochs=4,
        heldout_evaluations=2, save_every=save_every, seed=seed,
    ),
    evaluate=EvaluateSettings(
        knowledge="none", probes=(), drift_passages=0, style_items=8, side_by_side=0
    ),
)  # fmt: skip
(work / "recipe.yaml").write_text(yaml_text(recipe), encoding="utf-8")
record = run(recipe, work / "whole")

# %% [markdown]
# There is dropout in it on purpose: what is dropped is drawn at random, so whoever wants to go on exactly must restore the
# random generator, too.
#
# Now the same recipe in a process of its own, started as you would from a shell: `sftkit run recipe.yaml --out killed`. A run
# writes a line into `metrics.jsonl` after every step, and anyone may read it while it grows. We watch through that file, and
# when there are enough lines we kill the process. Not Ctrl-C, which would let it finish its step and save: SIGKILL, as when
# the plug is pulled.

# %%
from sftkit.metrics import read_metrics

command = [sys.executable, "-m", "sftkit_entry", "run", str(work / "recipe.yaml")]
command += ["--out", str(work / "killed")]
metrics = work / "killed" / "metrics.jsonl"
with (work / "killed.log").open("w", encoding="utf-8") as log:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    killed = ()
    while process.poll() is None and len(killed) < kill_after:
        time.sleep(0.1)
        seen, killed = len(killed), read_metrics(metrics) if metrics.exists() else ()
        for step in killed[seen:]:
            print(f"seen from outside: step {step.step}, loss {step.loss:.3f}")
    process.kill()
    process.wait()
killed = read_metrics(metrics)
kept = sorted(path.name for path in (work / "killed" / "checkpoints").glob("step-*"))
print(f"killed after step {len(killed)} (exit code {process.returncode}); checkpoints: {kept}")

# %% [markdown]
# No message, no clean-up, no report. What is left are the lines of `metrics.jsonl` and the checkpoints. Each of these was
# written whole or not at all, and has a checksum for every file. To go on is the same command with one word more:

# %%
saved = int(kept[-1].removeprefix("step-"))
done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
assert done.returncode == 0, done.stderr
told = [line for line in done.stdout.splitlines() if line.startswith(("went on", "step"))]
print(*told, sep="\n")

# %%
from sftkit.plots_watching import largest_difference, plot_resumed

resumed = read_metrics(metrics)
plot_resumed(record.training.steps, killed, resumed)

# %% [markdown]
# **Check.** Nearly the same is easy. Here the claim is *the same*: every loss, and every byte of the trained adapter.

# %%
files = [work / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "killed")]
same_bytes = files[0].read_bytes() == files[1].read_bytes()
difference = largest_difference(record.training.steps, resumed)
print(f"largest difference of any of {len(resumed)} losses: {difference}")
print(f"{files[0].stat().st_size:,} bytes of adapter, all equal: {same_bytes}")

# %% [markdown]
# ### Exercise 03.5
#
# How many finished steps did the kill cost? `killed[-1].step` steps were done, and `saved` was in the newest checkpoint. And if
# you never wanted to lose more than a minute of training: how many steps may lie between two checkpoints at most, at the
# average pace of the undisturbed run? Its steps are `record.training.steps`, and `seconds` counts from the start.

# %% tags=["exercise"]
### BEGIN SOLUTION
_whole = record.training.steps
lost_steps = killed[-1].step - saved
every = int(60 // (_whole[-1].seconds / len(_whole)))
### END SOLUTION
check("03.5", (lost_steps, every), whole=record.training.steps, killed=killed, saved=saved)

# %% [markdown]
# ### Who else may watch
#
# The figure in the cell, the bar in a terminal and the lines in a log show the same steps as `metrics.jsonl`. If you use
# TensorBoard, trackio, Weights & Biases or MLflow, one setting tells them every step as well: `train.trackers: tensorboard`.

# %% [markdown]
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory of this process {peak_memory_bytes() / 1e9:.2f} GB")
print(f"{choice.name}, seed {seed}, {time.strftime('%Y-%m-%d')}")

# %% [markdown]
# - One batch first. A loop that cannot learn eight rows by heart cannot learn anything; and the norm of the gradient says
#   whether nothing pulls or nothing gives way.
# - Choose the rate on validation rows, and stay left of the cliff.
# - A falling training loss proves nothing. Watch rows that are not trained, and keep the weights that were best on them.
# - Memory that runs out costs time, and no result. A kill costs the steps since the last checkpoint.
#
# In a recipe, all of it is settings:
#
# ```
# sftkit run my-recipe.yaml --out runs/mine --set train.save_every=50 --set train.early_stopping=heldout_loss
# sftkit run my-recipe.yaml --out runs/mine --resume
# ```

# %%
from sftkit.exercises import progress

progress("03")
