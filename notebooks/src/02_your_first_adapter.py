# ---
# jupyter:
#   sftkit:
#     short:
#       train_steps: 1
#       tested_rows: 6
#       toy_steps: 60
#       kinds: [lora, ia3]
#       out: runs/short/first-adapter
# ---

# %% [markdown]
# # 02 · Your first adapter
#
# An adapter is a small set of numbers beside a large model. You will build one by hand, check that it does nothing until
# it is trained, see what its two knobs do, and then try nine methods on one task: what each learned, and what it cost.
#
# Afterwards you will be able to
#
# - write LoRA in twenty lines, and say why a fresh one changes nothing;
# - choose rank, alpha and layers for a reason;
# - count what a method trains, before it is trained;
# - say for which methods "adapter off" is the base model, and why a comparison depends on it;
# - save an adapter, put two of them on one base, and merge one into the weights.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU, shared with other programs | 4.6 | 4.6 GB | 2026-11-22 |
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
train_steps = 8  # optimizer steps of each method in section 6
tested_rows = None  # test answers that are scored; None takes all
toy_steps = 150  # steps of the experiments on a single layer in section 4
kinds = None  # methods of section 6; None takes all nine
seed = 0  # of adapters and trainings
out = "runs/first-adapter"  # folder for adapters

# %% [markdown]
# ## 1 · What is there to adapt?
#
# A language model is mostly a stack of tables of numbers, called weight matrices. One of them turns a token's 576
# numbers into 1,536 others. Fine-tuning means to change such tables a little. How many numbers are that?

# %%
import time

import torch
from sftkit import fetch_model, load_model, load_tokenizer
from sftkit.settings import ModelSettings

model_settings = ModelSettings(name=model_name, dtype="float32")
source = fetch_model(model_settings)
tokenizer = load_tokenizer(model_settings, source=source)


def load_base():
    """Load the base model afresh: frozen, in 32 bits."""
    return load_model(model_settings, dtype=torch.float32, source=source)


clock = time.perf_counter()
base = load_base()
layer = base.model.layers[15].mlp.up_proj
print(f"{base.num_parameters():,} numbers in all, on {base.device}; in this one layer: {layer}")
print(f"its weight matrix: {tuple(layer.weight.shape)} = {layer.weight.numel():,} numbers")

# %% [markdown]
# To train them all, one needs each number, its gradient, and two more that the optimizer keeps: four times the memory of
# the model. LoRA (Hu et al. 2021) bets that the *change* is simpler than the table: that it can be written as a product
# of two thin matrices, `B · A`. With rank r = 8, `A` is 8 × 576 and `B` is 1,536 × 8.
#
# ### Exercise 02.1
#
# How many numbers would LoRA of rank 8 train for this layer? And what share of the layer's own numbers is that (between 0
# and 1)?

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
numbers = 8 * (layer.in_features + layer.out_features)
share = numbers / layer.weight.numel()
### END SOLUTION
check("02.1", (numbers, share), layer=layer, r=8)

# %% [markdown]
# ## 2 · LoRA by hand
#
# Here is all of it. The frozen layer does what it did; beside it runs a second path through the two thin matrices, and
# both results are added. `A` starts with random numbers, `B` with zeros. Before you read on: what does the second path
# give at the start?

# %%
from torch import nn


class LoraByHand(nn.Module):
    """A frozen linear layer, and beside it a trainable product of two thin matrices."""

    def __init__(self, frozen, r, alpha):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(r, frozen.in_features) / frozen.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(frozen.out_features, r))
        self.scale = alpha / r

    def forward(self, x):
        return self.frozen(x) + self.scale * (x @ self.A.T @ self.B.T)


torch.manual_seed(seed)
print(LoraByHand(layer, r=8, alpha=16))

# %% [markdown]
# It gives exactly zero, because `B` is zero. That is no detail. It means that training starts *at the base model*, and
# that anything you measure later was done by training. So check it, on the whole model: replace two layers of each block,
# `q_proj` and `v_proj`, as the paper did, and compare the numbers the model gives for its next token.

# %%
row = tokenizer("The lighthouse keeper wrote", return_tensors="pt").input_ids
row = row.to(base.device)


def next_token_numbers(model):
    """Compute the model's logits for one fixed text."""
    with torch.no_grad():
        return model(input_ids=row).logits


at_start = next_token_numbers(base)
for block in base.model.layers:
    for name in ("q_proj", "v_proj"):
        by_hand = LoraByHand(getattr(block.self_attn, name), r=8, alpha=16).to(base.device)
        setattr(block.self_attn, name, by_hand)
trained = sum(p.numel() for p in base.parameters() if p.requires_grad)
difference = (next_token_numbers(base) - at_start).abs().max().item()
print(f"{trained:,} numbers to train; largest change of any logit: {difference}")
assert difference == 0, "a fresh adapter must change nothing"

# %% [markdown]
# ## 3 · The same with peft
#
# Nobody writes this by hand in earnest: `peft` does, for many methods and model families, in a file format that others
# read. `attach_adapter` sets it up. Is it the same thing? Give both the same numbers for `A` and `B`, and compare.

# %%
from sftkit import AdapterSettings, attach_adapter, count_parameters

settings = AdapterSettings(kind="lora", r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
tuned = attach_adapter(load_base(), settings, seed=seed)
print(count_parameters(tuned))
with torch.no_grad():
    for mine, theirs in zip(base.model.layers, tuned.get_base_model().model.layers, strict=True):
        for name in ("q_proj", "v_proj"):
            hand, peft_layer = (getattr(b.self_attn, name) for b in (mine, theirs))
            hand.B.normal_(std=0.02)  # as if it had been trained
            peft_layer.lora_A["default"].weight.copy_(hand.A)
            peft_layer.lora_B["default"].weight.copy_(hand.B)
difference = (next_token_numbers(base) - next_token_numbers(tuned)).abs().max().item()
moved = (next_token_numbers(base) - at_start).abs().max().item()
print(f"moved away from the base by up to {moved:.2f}; by hand and peft differ by {difference:.1e}")
assert difference < 1e-3, "twenty lines and peft should agree"

# %% [markdown]
# The two agree up to rounding, and both have left the base. From here on peft does the work, and you know what it does.
#
# ## 4 · What rank and alpha do
#
# Two knobs: the rank `r`, and `alpha`, which multiplies the update by `alpha / r`. To see what they do, we need a task
# whose answer we know. So we take one real layer and invent a change for it, one that has rank 4 exactly. Then LoRA has to
# find that change, from random inputs and what the changed layer would give for them.

# %%
teacher = load_base().model.layers[15].self_attn.v_proj.cpu()
torch.manual_seed(seed)
thin, wide = torch.randn(teacher.out_features, 4), torch.randn(4, teacher.in_features)
change = thin @ wide / (4 * teacher.in_features) ** 0.5  # rank 4, and no more


def learn_change(r, alpha):
    """Train LoRA by hand; give the error after each step, as a share of the first."""
    torch.manual_seed(seed)
    student = LoraByHand(teacher, r, alpha)
    optimizer = torch.optim.Adam([student.A, student.B], lr=3e-3)
    errors = []
    for _ in range(toy_steps):
        x = torch.randn(128, teacher.in_features)
        error = (student(x) - (teacher(x) + x @ change.T)).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return [error / errors[0] for error in errors]


# %% [markdown]
# Left: ranks from too small to more than needed, alpha always twice the rank. Right: rank 4, with alpha from small to
# large.

# %%
from sftkit.plots_adapters import plot_rank_and_alpha

by_rank = {r: learn_change(r, alpha=2 * r) for r in (1, 2, 4, 8)}
by_alpha = {alpha: learn_change(4, alpha) for alpha in (1, 4, 16, 256)}
plot_rank_and_alpha(by_rank, by_alpha, true_rank=4)

# %% [markdown]
# Rank is *room*: with too little of it the error stops falling, however long you train; with more than needed nothing is
# gained but cost. Alpha is *pace*: it acts much like a learning rate. Too small is slow, and too large jumps about. That
# is why the two are tied by `alpha / r`, and why people change the rank and leave alpha at once or twice the rank.
#
# Real tasks do not tell their rank. They are tried: on validation data.
#
# ### Exercise 02.2
#
# `by_rank[r]` holds the error after each step. Which is the smallest rank here that leaves less than a tenth of the error
# at the end? Then add your own measurement, `by_rank[3] = learn_change(3, alpha=6)`, and look again before you answer.

# %% tags=["exercise"]
### BEGIN SOLUTION
by_rank[3] = learn_change(3, alpha=6)
smallest = min(r for r, errors in by_rank.items() if errors[-1] < 0.1)
### END SOLUTION
check("02.2", smallest, by_rank=by_rank)

# %% [markdown]
# ## 5 · Which layers?
#
# The paper adapted only the attention. Later work found that it matters more to adapt *all* linear layers than to have a
# high rank (Dettmers et al. 2023), so that is the default here. A target is a word, a list of names, or a pattern, and a
# target that matches nothing is refused: an adapter on no layer trains without a complaint, and learns nothing.

# %%
from sftkit.adapter_targets import find_targets
from sftkit.errors import SftkitError

base = load_base()  # afresh, without the layers of section 2
targets = ("all-linear", "attention", ("q_proj", "v_proj"), r".*layers\.(2\d)\..*", "q_projj")
for target in targets:
    chosen = AdapterSettings(kind="lora", r=8, target_modules=target)
    try:
        layers = [base.get_submodule(name) for name in find_targets(base, chosen)]
        numbers_trained = sum(8 * (one.in_features + one.out_features) for one in layers)
        print(f"{target!s:<22} {len(layers):>3} layers, {numbers_trained:>9,} numbers")
    except SftkitError as error:
        print(f"{target!s:<22} refused: {error}")

# %% [markdown]
# ## 6 · Nine methods, one task
#
# The task is that of notebook 00: facts about Dunnowick, a shop that does not exist. Each method gets the same rows, the
# same few steps and the same seed. These are the methods:

# %%
from IPython.display import Markdown
from sftkit.adapter_kinds import KINDS

lines = [f"- **{kind.name}** {kind.title}." for kind in KINDS.values()]
Markdown("\n".join(lines))

# %% [markdown]
# Each method needs its own learning rate: what is right for a few thousand numbers is far too much for 135 million. For
# each, a rate was taken with which four steps lowered the loss of *validation* rows, beyond chance. They were not tuned
# further, which is one more reason to read no ranking into what follows. The test rows had no part in that choice.

# %%
rates = {
    "lora": 2e-3,
    "rslora": 1e-3,
    "dora": 2e-3,
    "pissa": 1e-3,
    "lora+": 5e-4,
    "ia3": 3e-2,
    "prompt": 3e-2,
    "freeze": 3e-4,
    "full": 1e-4,
}
trials = {}
for name in kinds or KINDS:
    size = {"r": 8, "lora_alpha": 16} if "r" in KINDS[name].fields else {}
    size |= {"virtual_tokens": 8} if name == "prompt" else {}
    trials[name] = (AdapterSettings(kind=name, **size), rates[name])
    print(f"{name:<8} learning rate {rates[name]:g}")

# %%
from sftkit import read_dataset, split_dataset
from sftkit.encoding import encode_dataset
from sftkit.settings import DataSettings

dividing = DataSettings(source="shop", split_by="split", max_tokens=128)
splits = split_dataset(read_dataset("shop", split_by="split"), dividing)
examples = encode_dataset(splits.train, tokenizer, max_tokens=128, system="")
tested = encode_dataset(splits.test, tokenizer, max_tokens=128, system="")[:tested_rows]
print(f"{len(examples)} training rows, {len(tested)} test answers in phrasings never trained on")

# %% [markdown]
# Now train them, one after the other, each on a base of its own. For each we measure the loss on test answers before and
# after, the time, the memory on top of the model, and two differences that ought to be zero: between the base and the
# *fresh* adapter, and between the base and the trained adapter *switched off*.

# %%
from pathlib import Path

from sftkit import save_adapter
from sftkit.methods import try_methods
from sftkit.settings import TrainSettings

work = Path(out) / time.strftime("%Y-%m-%d-%H%M%S")  # a new folder: nothing is overwritten
training = TrainSettings(max_tokens_per_batch=300, max_steps=train_steps, epochs=4, seed=seed)


def keep(name, model):
    """Save what was trained; freeze and full would be as large as the model itself."""
    if KINDS[name].peft_type is not None:
        save_adapter(model, work / name, base_fingerprint=source.fingerprint)


del base, tuned
results = try_methods(trials, load_base, examples, tested, training, keep=keep)

# %%
from sftkit.plots_adapters import plot_methods

print(f"{model_name}, {train_steps} steps of at most {training.max_tokens_per_batch} tokens,")
print(f"one seed ({seed}), float32, {len(tested)} test answers, {time.strftime('%Y-%m-%d')}")
plot_methods(results)

# %% [markdown]
# The line through each dot is the 95 % interval over the shop's facts. Two methods whose intervals overlap widely are not
# told apart by this test; and no interval here covers another seed, more steps, or another task. Read this as *what kinds
# of methods there are*, and not as a ranking: an order of few steps and one seed is easily turned round.

# %%
import pandas as pd


def shown(difference):
    """Write a difference of logits, 0 as 0."""
    return "nothing to switch off" if difference is None else f"{difference:.2g}"


rows = {
    name: {
        "loss before → after": f"{trial.heldout.before:.2f} → {trial.heldout.after:.2f}",
        "95 % of the change": "{:+.2f} to {:+.2f}".format(*trial.heldout.ci95),
        "trained share": f"{trial.share:.3%}",
        "seconds": f"{trial.attach_s + trial.train_s:.0f}",
        "memory on top": f"{trial.extra_bytes / 1e9:.2f} GB",
        "fresh changes logits by": shown(trial.fresh_change),
        "off differs from base by": shown(trial.off_change),
    }
    for name, trial in results.items()
}
pd.DataFrame(rows).T

# %% [markdown]
# Read the last two columns. Three things stand out there:
#
# - **prompt** changes logits from the start, by design: tokens stand in front of the text. Switched off, it is gone.
# - **pissa** is nearly unnoticed while fresh, but *switched off it is not the base*: it took the largest part of each
#   weight out of the base and into the adapter. Whoever measures "before" by switching pissa off measures a damaged model,
#   and will report a splendid gain.
# - **freeze** and **full** have nothing to switch off. The base is gone, and must be scored before training.
#
# The kit knows this, per method, and refuses what would mislead:

# %%
from sftkit import adapter_off, load_adapter

for name in [name for name in results if KINDS[name].peft_type is not None]:
    loaded = load_adapter(load_base(), work / name, base_fingerprint=source.fingerprint)
    try:
        with adapter_off(loaded):
            same = torch.equal(next_token_numbers(loaded), at_start)
            print(f"{name:<8} off: {'the base, bit for bit' if same else 'NOT the base'}")
    except SftkitError as error:
        print(f"{name:<8} refused: {error}")

# %% [markdown]
# ### Exercise 02.3
#
# For which methods of the table can "before" be measured by switching the adapter off? Hand in a set of names, by what was
# *measured*: `results[name].off_change`.

# %% tags=["exercise"]
### BEGIN SOLUTION
can_be_switched_off = {name for name, trial in results.items() if trial.off_change == 0}
### END SOLUTION
check("02.3", can_be_switched_off, results=results)

# %% [markdown]
# ### Exercise 02.4
#
# Is more always better? Compare the method that trains the most with the one that trains the fewest parameters of those
# you ran. How many times as many parameters are that, and how much lower is its test loss (a number above 0 if it is lower,
# below 0 if not)?

# %% tags=["exercise"]
### BEGIN SOLUTION
_by_size = sorted(results.values(), key=lambda trial: trial.trainable)
times = _by_size[-1].trainable / _by_size[0].trainable
lower_by = _by_size[0].heldout.after - _by_size[-1].heldout.after
### END SOLUTION
check("02.4", (times, lower_by), results=results)

# %% [markdown]
# ## 7 · Turn it down, put two on one base, merge
#
# An adapter stays apart from its base, so it can be turned down, exchanged, or made part of it. First the strength: at 0
# it must be the base to the last bit.

# %%
from sftkit import adapter_scaled

model = load_adapter(load_base(), work / "lora", name="shop")
for strength in (0.0, 0.5, 1.0):
    with adapter_scaled(model, strength):
        moved = (next_token_numbers(model) - at_start).abs().max().item()
    print(f"strength {strength}: logits moved by up to {moved:.3f}")

# %% [markdown]
# Two adapters on one base cost little more memory than one, and each must answer as it does alone. The second is the
# same adapter at half its strength, for good.

# %%
from sftkit.adapter import weaken_adapter
from sftkit.adapter_files import merge_adapter, switch_adapter

weaker = load_adapter(load_base(), work / "lora")
weaken_adapter(weaker, 0.5)
save_adapter(weaker, work / "lora-weaker", base_fingerprint=source.fingerprint)
alone = {"shop": next_token_numbers(model), "weaker": next_token_numbers(weaker)}
load_adapter(model, work / "lora-weaker", name="weaker")
for name in ("shop", "weaker", "shop"):
    switch_adapter(model, name)
    same = torch.equal(next_token_numbers(model), alone[name])
    print(f"{name}: {'as it answers alone' if same else 'NOT as it answers alone'}")

# %% [markdown]
# **Check.** Merged, the update becomes part of the weights: no adapter is left to load, and nothing to switch off. In 32
# bits the merged model must answer as before, up to rounding.

# %%
merged = merge_adapter(model)
difference = (next_token_numbers(merged) - alone["shop"]).abs().max().item()
print(f"{type(merged).__name__}, largest change of any logit by merging: {difference:.1e}")
assert difference <= 1e-4, "merging must not change the answers"

# %% [markdown]
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory {peak_memory_bytes() / 1e9:.2f} GB, {merged.device}")
for path in sorted(work.glob("*/*.safetensors")):
    print(f"{path.stat().st_size / 1e6:>6.2f} MB  {path.relative_to(work).as_posix()}")

# %% [markdown]
# - LoRA is a second path beside each frozen layer: `B · A`, with `B` zero at the start. So a fresh adapter changes nothing,
#   and that is checked before every training.
# - Rank is room, alpha is pace. Adapt all linear layers unless you have a reason.
# - Each method has its own learning rate. A comparison at one rate for all compares rates.
# - "Adapter off" is the base for most methods, and not for all. Where it is not, score the base first.
#
# Your own try: raise `train_steps` at the top, and see which order stays. In a recipe, a method is one line:
#
# ```
# sftkit demo --set adapter.kind=dora
# ```

# %%
from sftkit.exercises import progress

progress("02")
