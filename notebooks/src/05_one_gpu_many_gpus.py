# ---
# jupyter:
#   sftkit:
#     short:
#       steps: 3
#       batch_tokens: 256
#       stop_after: 1
#       out: runs/short/many-gpus
# ---

# %% [markdown]
# # 05 · One GPU, many GPUs
#
# A training that takes a week on one GPU could take a day on eight. But is it then still the same training? Here you start
# one recipe on one process and on two, from a cell, and see the same losses. You will see where the usual way to add up
# goes wrong, what a second process buys and what it does not, and what to write down for eight GPUs on two machines.
#
# Afterwards you will be able to
#
# - start a recipe on several processes, stop it, and go on with it;
# - say how a step is divided, and why its loss must not be a mean of means;
# - read a scaling figure without being fooled by it;
# - say what DDP, ZeRO and FSDP each split, and which of them your plan needs;
# - check a launch for machines you do not have yet.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 2.9 | 5.3 GB | 2026-11-23 |
# | Two or more GPUs | not run yet | not run yet | |
#
# A process is what uses a GPU. Two processors' cores are enough to learn all of this, so no GPU is needed here, and none was
# there: nothing in this notebook is a measurement of a GPU. Memory is that of the notebook and two processes together,
# each of which holds the whole model in 32 bits (0.54 GB).

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
# All you may want to change stands here. With two GPUs, set `device = "cuda"`.

# %% tags=["parameters"]
device = "cpu"  # cpu, or cuda: then each process takes a GPU of its own
steps = 8  # optimizer steps of each run
batch_tokens = 512  # tokens of one step, all processes together
stop_after = 4  # section 7 presses the stop button after this step
out = "runs/many-gpus"  # folder for the runs

# %% [markdown]
# ## 1 · One recipe
#
# The recipe is that of notebook 00, made short: fewer rows, a few steps, and hardly any evaluation, because today we look at
# the training alone. It computes in 32 bits, so that two ways to the same sum can be told from two different sums. Note
# what is *not* in it: how many processes. A recipe says what to train, not on what.

# %%
import time
from pathlib import Path

from sftkit import load_tokenizer
from sftkit.prepare import prepare_data
from sftkit.run import find_recipe

clock = time.perf_counter()
work = Path(out) / time.strftime("%Y-%m-%d-%H%M%S")  # a new folder: nothing is overwritten
training = [f"train.max_steps={steps}", f"train.max_tokens_per_batch={batch_tokens}"]
training += ["train.micro_batches=1", "train.heldout_evaluations=1", "train.seed=2"]
measured = ["knowledge=none", "probes=[]", "drift_passages=0", "style_items=4", "side_by_side=0"]
held = [f"model.device={device}", "model.dtype=float32", "data.limit=160"]
recipe = find_recipe("demo", overrides=[*held, *training, *(f"evaluate.{m}" for m in measured)])
tokenizer = load_tokenizer(recipe.model)
examples = prepare_data(recipe, tokenizer, {}).train
print(f"{len(examples)} rows; {steps} steps of at most {batch_tokens} tokens, padding included")

# %% [markdown]
# ## 2 · How a step is dealt
#
# All steps are planned before the first one, from the rows' lengths and the seed alone. So a step holds the same rows on
# one process and on eight; more processes do not mean larger steps, but smaller shares. That is why nothing has to be
# tuned again, neither the learning rate nor the number of steps.
#
# A step is as slow as its slowest process. So rows are dealt like cards, the longest first, there and back again: A B, B A,
# A B. The recipe mixes two kinds of rows: questions, of which only the short answer is learned from, and passages of general
# text, learned from as a whole. Here is the step of this plan whose two hands differ most.

# %%
from sftkit.batching import deal
from sftkit.train import plan_steps

plan = plan_steps([example.length for example in examples], recipe.train)


def dealt(rows, processes):
    """Deal a step's rows; give places in the step, a list per process."""
    lengths = [examples[row].length for row in rows]
    sharing = {"processes": processes, "micro_batches": 1}
    return [deal(lengths, process=process, **sharing)[0] for process in range(processes)]


def gap(rows):
    """Say how unlike the supervised tokens of two hands are."""
    first, second = (sum(examples[rows[p]].weight for p in hand) for hand in dealt(rows, 2))
    return abs(first - second)


worked = max((rows for rows in plan if len(rows) > 1), key=gap)
lengths = [examples[row].length for row in worked]
hands = dealt(worked, 2)
print(f"lengths of the step's rows: {lengths}\nplaces of process 0: {hands[0]}, of 1: {hands[1]}")

# %%
from sftkit.plots_processes import plot_dealt

supervised = [examples[row].weight for row in worked]
plot_dealt(lengths, supervised, hands)

# %% [markdown]
# **Check.** Every row is in exactly one hand, for all steps of the plan and for any number of processes. With more processes
# than rows, some hands are empty: those processes wait.

# %%
for processes in (1, 2, 3, 8):
    for rows in plan:
        together = sorted(place for hand in dealt(rows, processes) for place in hand)
        assert together == list(range(len(rows))), "a row was lost or dealt twice"
    idle = sum(not hand for rows in plan for hand in dealt(rows, processes))
    print(f"dealt to {processes}: every row once; {idle} empty hands in {len(plan)} steps")

# %% [markdown]
# ### Exercise 05.1
#
# Deal the same step, `lengths`, to **three** processes. How many tokens has the busiest of them?

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
_sums = [sum(lengths[place] for place in hand) for hand in dealt(worked, 3)]
busiest = max(_sums)
### END SOLUTION
check("05.1", busiest, lengths=lengths, processes=3, deal=deal)

# %% [markdown]
# ## 3 · Why not the mean of means?
#
# Each process could take the mean loss of its own tokens, and then one averages over processes. That is what the usual
# wrapper for several GPUs does with gradients. It is right only if every process has as many supervised tokens. Take two
# processes, and tokens whose losses are easy to add:

# %%
losses_of = {"process 0": [3.0, 3.0], "process 1": [1.0] * 8}
sums = {name: sum(losses) for name, losses in losses_of.items()}
tokens = sum(len(losses) for losses in losses_of.values())
means = [sums[name] / len(losses) for name, losses in losses_of.items()]
print(f"over all {tokens} tokens: {sum(sums.values())} / {tokens} = {sum(sums.values()) / tokens}")
print(f"mean of means: ({means[0]} + {means[1]}) / 2 = {sum(means) / 2}")

# %% [markdown]
# The two tokens of process 0 got half of all say. On one process they would have a fifth. So the number of processes changes
# what is learned: the same recipe on two GPUs would be another training. Here the losses stay *sums*, the count of
# supervised tokens is that of the whole step, and the gradients of the processes are added up, not averaged.
#
# How large is the mistake for real? Take the step above, the real model, and compute it both ways.

# %%
import torch
from sftkit import chat_loss, load_model
from sftkit.forward import collate

model = load_model(recipe.model)
pad_id = model.config.pad_token_id or 0


def summed_loss(model, rows):
    """Give the sum of the losses of rows, and how many tokens it is over."""
    batch = collate([examples[r] for r in rows], pad_id=pad_id, device=model.device)
    with torch.no_grad():
        total, count = chat_loss(model, batch)
    return total.item(), count


parts = [summed_loss(model, [worked[place] for place in hand]) for hand in hands]
whole, count = summed_loss(model, worked)
added = sum(total for total, _ in parts) / sum(n for _, n in parts)
mean_of_means = sum(total / n for total, n in parts) / 2
for process, (total, n) in enumerate(parts):
    print(f"process {process}: {total:.3f} nats over {n} tokens, mean {total / n:.4f}")
print(f"\none process: {whole / count:.6f}\nsums added:  {added:.6f}")
print(f"mean of means: {mean_of_means:.6f}, off by {mean_of_means - added:+.4f} nats per token")

# %% [markdown]
# **Check.** Dividing the step and adding up gives what one process gives, up to the order in which 32-bit numbers are
# rounded. We also keep the loss of the first step of the plan: a fresh adapter changes nothing, so every run below
# must begin with exactly this.

# %%
assert abs(added - whole / count) < 1e-5, "the divided step must have the loss of the whole"
total, n = summed_loss(model, plan[0])
first_loss = total / n
print(f"the first step of the plan has a loss of {first_loss:.6f}")
del model

# %% [markdown]
# ### Exercise 05.2
#
# In the step above, process 0 has `tokens_0` supervised tokens and process 1 `tokens_1`. In the mean of means, how many times
# does one token of process 0 count, compared with one of process 1?

# %% tags=["exercise"]
tokens_0, tokens_1 = (count for _, count in parts)
### BEGIN SOLUTION
times = tokens_1 / tokens_0
### END SOLUTION
check("05.2", times, tokens=(tokens_0, tokens_1))

# %% [markdown]
# ## 4 · The same recipe, twice
#
# Now start it. `launch` always starts fresh processes, through Accelerate, and follows them from this cell. It never copies
# the notebook's own process: a copy of a process that has used a GPU does not work. Each process loads its own model and
# prepares the same rows; after every step they add up their gradients.
#
# First one process. It gets one core, so that there will be something to compare with. The loss will jump up and down from
# step to step, because some steps hold general passages and others questions about the shop.

# %%
import psutil
from sftkit import make_watcher
from sftkit.launch import launch


def train_on(processes, *, threads=1, name=None, **options):
    """Train the recipe on so many processes, each with so many cores; give the record."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # `launch` hands it on
    print(f"other programs keep {psutil.cpu_percent(interval=1):.0f} % of all cores busy")
    folder = work / (name or f"{processes}-processes-{threads}-threads")
    return launch(recipe, processes=processes, out=folder, **options)


one = train_on(1)

# %% [markdown]
# Then two, with a core each. The recipe is the same object.

# %%
two = train_on(2, watcher=make_watcher("plain"))

# %% [markdown]
# Were those really two? Their record says so. And are they the same training? Look at every step.

# %%
from sftkit.plots_processes import plot_same_losses

furthest = max(
    abs(a.loss - b.loss) for a, b in zip(one.training.steps, two.training.steps, strict=True)
)
print(f"processes: {one.environment.processes} and {two.environment.processes}")
print(f"largest difference of any step's loss: {furthest:.1e} nats per token")
print(f"step 1: by hand {first_loss:.6f}, launched {two.training.steps[0].loss:.6f}")
plot_same_losses({"1 process": one.training.steps, "2 processes": two.training.steps})

# %% [markdown]
# **Check.** Not similar: equal, but for the last digits of 32-bit numbers, where it matters in which order one adds. The mean
# of means would be off at the first uneven step already, and by far more.

# %%
assert two.environment.processes == 2, "two processes must be two"
assert furthest < 1e-5, "one and two processes must train the same"
assert abs(first_loss - one.training.steps[0].loss) < 1e-4, "a run begins at the base model"
print(
    f"furthest apart: {furthest:.1e}; the mean of means was off by {abs(mean_of_means - added):.1e}"
)

# %% [markdown]
# ## 5 · What does it buy?
#
# On this machine two processes share two cores. There is an honest and a flattering way to measure them. The flattering one
# compares two processes with one process *on one core*. But nobody has to train on one core: a single process can use
# both, by dividing each matrix product. So a third run is needed: one process with two threads.

# %%
one_on_both = train_on(1, threads=2, watcher=make_watcher("silent"))
same = max(
    abs(a.loss - b.loss)
    for a, b in zip(one.training.steps, one_on_both.training.steps, strict=True)
)
print(f"1 process with 2 threads: losses within {same:.1e} of those with 1 thread")

# %% [markdown]
# All three runs have the same steps. So each step can be compared with the *same rows* on one core, and the middle one of
# these comparisons is not upset by a step during which something else ran.

# %%
from statistics import median

from sftkit.plots_processes import plot_scaling, speed_gains

runs = {(1, 1): one.training, (2, 1): two.training, (1, 2): one_on_both.training}
gains = speed_gains({name: done.steps for name, done in runs.items()})
gains = {name: median(each) for name, each in gains.items()}
for (processes, threads), gain in gains.items():
    speed = runs[processes, threads].tokens / runs[processes, threads].seconds
    print(f"{processes} × {threads}: {gain:.2f} times one core in the middle step; efficiency "
          f"{gain / (processes * threads):.0%} of its cores; {speed:,.0f} tokens/s in all")  # fmt: skip
print(f"{platform.machine()}, {os.cpu_count()} cores; {time.strftime('%Y-%m-%d')}; one run of each")
plot_scaling({name: done.steps for name, done in runs.items()})

# %% [markdown]
# Compare the last two bars, not the first two: they use the same cores. Two processes divide a step's rows, two threads divide
# each matrix product; either way there are two cores. A second process on cores that one process can use already is no
# second machine, and it has to wait for the busiest hand at every step.
#
# *Efficiency* is the gain divided by what was paid for: two cores that are 1.6 times as fast as one have 80 %. More than 100 %
# is no gift: it says that the run with one core was held up by other programs. The dots, one per step, show how much
# such a timing jumps about. So time on a quiet machine, and more than once, before you decide anything by it.
#
# With **two GPUs** it is different in one point: a process trains on one GPU at a time, so without a second process the
# second GPU stands idle. Then the flattering comparison is the honest one. What it costs is the sum of the gradients,
# which goes over the wire at every step, and it depends on what is *trained*, not on how large the model is:

# %%
adapter = one.training.trainable_parameters
whole_model = one.training.total_parameters - adapter
print(f"gradients of the adapter: {4 * adapter / 1e6:>6.1f} MB per step and process")
print(f"gradients of all weights: {4 * whole_model / 1e6:>6.1f} MB per step and process")
for name, record in {"1 process": one, "2 processes, the first": two}.items():
    print(f"{name}: {record.cost.peak_bytes / 1e9:.2f} GB of memory at its peak")

# %% [markdown]
# The second process holds the whole model once more. More processes on one machine cost memory, each as much as the first,
# less what its smaller share of a step saves.
#
# ### Exercise 05.3
#
# From `gains`: how many times as fast are two processes (`gains[2, 1]`) as one process on one core, and as one process that
# uses both?

# %% tags=["exercise"]
### BEGIN SOLUTION
flattering = gains[2, 1]
honest = gains[2, 1] / gains[1, 2]
### END SOLUTION
check("05.3", (flattering, honest), gains=gains)

# %% [markdown]
# ## 6 · When one GPU cannot hold it
#
# So far every process held everything. That is *data parallel* training (DDP): rows are divided, nothing else. If the model
# does not fit on one GPU, it does not fit on eight either. The other strategies divide what is held as well, and each of
# them more than the one before:
#
# | Strategy | rows | gradients, optimizer | weights |
# |---|---|---|---|
# | `ddp` | divided | whole | whole |
# | `deepspeed-zero2` | divided | divided | whole |
# | `deepspeed-zero3`, `fsdp` | divided | divided | divided |
#
# What would that mean for qwen3-8b on eight GPUs? Its configuration is stored here, so its memory on *one* GPU can be
# predicted without a download, as in notebook 04. The rest is division: `per_process` divides the parts that a strategy
# splits. It is arithmetic. Nothing of it was measured.

# %%
from sftkit import AdapterSettings, ModelSettings, TrainSettings
from sftkit.catalog import model_config
from sftkit.memory import SPLIT, estimate, per_process
from sftkit.memory_formulas import ForwardPass

held = ModelSettings(name="qwen3-8b", dtype="bfloat16")
saving = TrainSettings(micro_batches=2, activation_checkpointing=True)


def on_gpus(kind, strategy, gpus):
    """Predict the memory of each GPU: a step of 16 rows of 512 tokens, shared by all."""
    rows = 16 // gpus // saving.micro_batches  # of one pass
    passes = [ForwardPass(rows=rows, length=512, supervised=256 * rows)]
    plan = {"adapter": AdapterSettings(kind=kind), "train": saving, "passes": passes}
    each = estimate(model_config(held), model=held, **plan, device="cuda")
    return per_process(each, strategy=strategy, processes=gpus)


needed = {
    kind: {"1 GPU": on_gpus(kind, "ddp", 1), **{name: on_gpus(kind, name, 8) for name in SPLIT}}
    for kind in ("full", "lora")
}
for name, parts_split in SPLIT.items():
    print(f"{name:<16} divides {', '.join(parts_split) or 'nothing that is held'}")

# %%
from sftkit.plots_processes import plot_split

plot_split({"all weights trained": needed["full"], "LoRA, rank 16": needed["lora"]})

# %% [markdown]
# Read the two groups apart.
#
# - **All weights trained**: most of the memory is gradients and the optimizer's running means, 32 bits each. `zero2`
#   divides just these; what is left is the weights, and only `zero3` and `fsdp` divide them too.
# - **LoRA**: gradients and optimizer are those of the adapter, next to nothing. `zero2` divides next to nothing, so it
#   hardly helps. Either the frozen weights fit on one GPU, and `ddp` is the right choice; or they do not, and they have to
#   be divided, or held in 4 bits (notebook 04).
#
# Not in the figure: what the GPUs send each other, and the one block whose weights are brought together while it computes.
#
# ### Exercise 05.4
#
# All weights are to be trained on eight GPUs. Which strategy splits *least* and still fits, at its upper end, on GPUs of 80 GB?
# And on GPUs of 40 GB? `choices` holds an estimate for each, in order of how much is split; its `.high` is in bytes.

# %% tags=["exercise"]
choices = {name: needed["full"][name] for name in SPLIT}
for name, one_gpu in choices.items():
    print(f"{name:<16} at most {one_gpu.high / 1e9:.0f} GB")
### BEGIN SOLUTION
_fitting = {size: [n for n, g in choices.items() if g.high <= size] for size in (80e9, 40e9)}
for_80, for_40 = _fitting[80e9][0], _fitting[40e9][0]
### END SOLUTION
check("05.4", (for_80, for_40), needed=choices, budgets=(80e9, 40e9))

# %% [markdown]
# ## 7 · Stop it, and go on
#
# A run on many processes has many ways to end badly: half of it stopped, or processes that live on in the background
# and keep their memory. So press the stop button in the middle. Here a watcher presses it, after a step, by the same
# signal that JupyterLab's button sends.

# %%
import signal

from sftkit.errors import StoppedError


class PressStop:
    """A watcher that presses the stop button after a step."""

    def on_step(self, step, total_steps):
        print(f"step {step.step} of {total_steps}, loss {step.loss:.3f}")
        if step.step == stop_after:
            signal.raise_signal(signal.SIGINT)

    def note(self, text):
        if "SIGINT" in text:
            print(text)

    def close(self):
        pass


try:
    train_on(2, name="stopped", watcher=PressStop())
except StoppedError as stopped:
    print(f"\n{stopped}")

# %% [markdown]
# **Check.** No process is left, and the checkpoint is whole: reading it verifies every byte.

# %%
from sftkit.checkpoint import load_checkpoint

left = psutil.Process().children(recursive=True)
newest = max((work / "stopped" / "checkpoints").glob("step-*"))
checkpoint, fingerprints = load_checkpoint(newest)
print(f"processes left: {len(left)}\n{newest.name} holds step {checkpoint.step} of {steps}")
some = ", ".join(list(fingerprints)[-6:])
print(f"it goes on only where {len(fingerprints)} things are the same, the last of them {some}")
assert not left, "a stop must leave no process"
assert stop_after <= checkpoint.step < steps, "the stop must be in the middle"

# %% [markdown]
# Go on from it. The steps that were done are not done again, and the rest must be what it would have been without the stop:
# not within 1e-5 this time, but to the last bit.

# %%
resumed = train_on(2, name="stopped", resume=True, watcher=make_watcher("silent"))
assert resumed.training.steps[-1].loss == two.training.steps[-1].loss, "it must end the same"
plot_same_losses({"never stopped": two.training.steps, "stopped": resumed.training.steps})

# %% [markdown]
# Had a process died instead, or a cable been pulled, the others would wait for 60 seconds, say in words whom they lost, and
# end; and you would go on in the same way, on as many processes or on fewer. From a shell all of this is
#
# ```
# sftkit run RECIPE --out DIR --processes 2
# sftkit run RECIPE --out DIR --processes 2 --resume
# ```
#
# ## 8 · Eight GPUs on two machines
#
# The same `launch` runs on each of several machines; they only have to know where to meet. Since a mistake in such a plan
# is found after everybody has waited, look at it first. A plan needs none of the machines:

# %%
from sftkit.launch_config import accelerate_config, dry_launch_text, plan_launch

big = find_recipe("4gpu", overrides=["name=8gpu", "model.device=cuda"])
address = "10.0.0.1:29500"  # of the first machine, as the others reach it
meeting = {"processes": 8, "machines": 2, "main_address": address}
plans = [plan_launch(big, **meeting, machine_rank=rank) for rank in range(2)]
print(dry_launch_text(plans[0], big))

# %% [markdown]
# The line that begins with "Not on this machine" is what a real start would be refused for. What has to be different on the
# second machine?

# %%
first, second = (accelerate_config(one_plan, big) for one_plan in plans)
for name in first:
    if first[name] != second[name]:
        print(f"{name}: {first[name]} on the first machine, {second[name]} on the second")
for one_plan in plans:
    print(f"\nmachine {one_plan.machine_rank}: sftkit run recipe.yaml --out runs/8gpu --processes 8 "
          f"\\\n  --machines 2 --machine-rank {one_plan.machine_rank} --main-address {address}")  # fmt: skip

# %% [markdown]
# Everything else must be the same, and that is checked as well: before the first step the machines compare recipe, data,
# base and versions, and refuse in words if they differ.
#
# The other strategies are written out too. They need GPUs, which were not there, so their configuration was only checked
# by Accelerate's own loader, and sftkit does not start them. What cannot work at all is refused, on any machine:

# %%
from sftkit.errors import SftkitError

unquantized = find_recipe("4gpu", overrides=["model.device=cuda", "model.quantization=none"])
sharded = plan_launch(unquantized, **meeting, strategy="fsdp")
for name, value in accelerate_config(sharded, unquantized)["fsdp_config"].items():
    print(f"  {name}: {value}")
for wrong in ({"strategy": "fsdp"}, {"processes": 7}, {"main_address": None}):
    try:
        plan_launch(big, **{**meeting, **wrong})
    except SftkitError as error:
        print(f"\n{wrong} is refused. {error}")

# %% [markdown]
# ### Exercise 05.5
#
# A third machine with four GPUs joins. Write the plan of the **third** machine for the recipe `big`.

# %% tags=["exercise"]
### BEGIN SOLUTION
third = plan_launch(big, processes=12, machines=3, machine_rank=2, main_address=address)
### END SOLUTION
check("05.5", third, address=address)

# %% [markdown]
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
most = peak_memory_bytes() + 2 * max(one.cost.peak_bytes, two.cost.peak_bytes)
print(
    f"{minutes:.1f} minutes; notebook and two processes at their peaks: {most / 1e9:.1f} GB at most"
)

# %% [markdown]
# - A recipe says what to train; how many processes do it changes nothing but the time. That holds because a step is planned
#   as a whole and dealt out, and because losses are added up over the step's tokens, never averaged over processes.
# - A second process helps as far as it brings something of its own: a GPU, or cores that were idle. Compare with the best
#   that one process can do on the same hardware.
# - DDP divides rows. ZeRO and FSDP divide what is held too; which part is worth dividing depends on what you train.
# - A stop ends all processes and saves; the run goes on bit for bit.
# - A plan for many machines can be read and refused before any of them starts.
#
# More, with two machines, Slurm, and what was run and what was not: `docs/beyond-one-machine.md`.

# %%
from sftkit.exercises import progress

progress("05")
