# ---
# jupyter:
#   sftkit:
#     short:
#       probe_steps: 2
#       passages: 8
#       train_steps: 3
#       texts: 40
# ---

# %% [markdown]
# # 04 · Quantized loading and memory
#
# A base model that is not trained need not be exact. Its weights can be rounded to 8 or 4 bits each, and a model that did
# not fit then fits. What does it save, what does it cost, and how would you know?
#
# Afterwards you will be able to
#
# - say where the memory of a training run goes, before you start it;
# - round weights to 4 bits by hand, and say what "nf4" and "double quantization" mean;
# - measure what rounding costs, with an interval, instead of believing that it costs nothing;
# - train an adapter on a 4-bit model (QLoRA), and choose a model that fits your machine.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 1 CPU core, no GPU | 6.4 | 3.7 GB | 2026-11-22 |
# | 2 CPU cores, no GPU | 4.2 | 2.1 GB, and 1.8 GB in processes of its own | 2026-11-23 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once. The 4- and 8-bit layers are those of the library `bitsandbytes`, which runs on CPUs and NVIDIA
# GPUs; on a Mac's GPU they do not exist.

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

# %% tags=["parameters"]
recipe_name = "cpu"  # a bundled recipe
probe_steps = 4  # training steps of each trial in section 3
passages = 20  # passages of general text that are scored in each trial
train_steps = 10  # training steps in section 4
texts = 200  # texts in section 5

# %% [markdown]
# ## 1 · Predict
#
# While a model is trained, five things take memory: its *weights*; the *adapter* with its gradients and the optimizer's
# running means; the *activations*, which are everything the forward pass leaves lying for the backward pass; the *logits*,
# one score per word of the vocabulary; and the program itself. All but the last follow from the model's configuration and
# the plan, so they can be computed without loading anything.
#
# Five ways to hold the weights, from 32 bits each down to 4:

# %%
from sftkit.run import find_recipe

WAYS = {
    "fp32": {"dtype": "float32", "quantization": "none"},
    "bf16": {"dtype": "bfloat16", "quantization": "none"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4", "double_quantization": "false"},
    "nf4, double": {"dtype": "bfloat16", "quantization": "nf4", "double_quantization": "true"},
}
short = [f"train.max_steps={probe_steps}", f"evaluate.drift_passages={passages}"]


def recipe_for(way):
    held = [f"model.{field}={value}" for field, value in way.items()]
    return find_recipe(recipe_name, overrides=["model.device=cpu", *held, *short])


recipes = {name: recipe_for(way) for name, way in WAYS.items()}
print(
    f"{recipes['nf4'].model.name}, {recipes['nf4'].adapter.kind} of rank {recipes['nf4'].adapter.r}"
)

# %% [markdown]
# The prediction needs to know how long the examples are, because activations grow with them. So they are read and encoded,
# as for training.

# %%
from sftkit import load_tokenizer
from sftkit.catalog import model_config
from sftkit.memory import estimate, passes_of, shared_beginning
from sftkit.prepare import prepare_data

recipe = recipes["nf4"]
tokenizer = load_tokenizer(recipe.model)
data = prepare_data(recipe, tokenizer, {})
lengths = [len(example.input_ids) for example in data.train]
learned = [sum(label != -100 for label in example.labels) for example in data.train]
shared = shared_beginning(example.input_ids for example in data.train)  # computed once


def predict(recipe):
    forward = passes_of(lengths, learned, recipe.train, shared=shared)
    plan = {"model": recipe.model, "adapter": recipe.adapter, "train": recipe.train}
    return estimate(model_config(recipe.model), **plan, passes=forward)


predicted = {name: predict(one) for name, one in recipes.items()}
for name, one in predicted.items():
    print(
        f"{name:<12} weights {one.components['weights'] / 1e6:>4.0f} MB of {one.total / 1e6:,.0f} MB"
    )

# %%
from sftkit.plots_memory import plot_memory

plot_memory(predicted)

# %% [markdown]
# Look at the bars before you believe in quantization. For a model this small the weights are only a part, and the other parts
# do not shrink with them. For a model of 8 billion parameters it is the other way round; section 6 shows it.
#
# ## 2 · Sixteen numbers
#
# Four bits can tell sixteen values apart. So a 4-bit weight is a number from 0 to 15, which points into a list of sixteen
# *levels*. One list cannot serve a whole model, because layers differ in size; so weights are taken in blocks of 64, and
# each block keeps one *scale*, its largest weight. Three things are stored: the levels once, a scale per block, four bits
# per weight.
#
# Here is one matrix of the model, exact and as `nf4` holds it.

# %%
from sftkit import load_model

exact = load_model(recipes["fp32"].model)
rounded = load_model(recipes["nf4"].model)
weights = exact.model.layers[0].mlp.up_proj.weight
state = rounded.model.layers[0].mlp.up_proj.weight.quant_state
print(f"{tuple(weights.shape)}, blocks of {state.blocksize}, {state.absmax.numel():,} scales")
print("levels:", *(f"{level:.3f}" for level in state.code.tolist()))

# %% [markdown]
# The same by hand: divide each block by its largest weight, take the nearest level, multiply again. If we have understood
# it, we get what the library gets.

# %%
import torch
from bitsandbytes.functional import dequantize_4bit

blocks = weights.detach().bfloat16().float().reshape(-1, state.blocksize)
scales = blocks.abs().amax(dim=1, keepdim=True)
scaled = blocks / scales
nearest = (scaled.unsqueeze(-1) - state.code).abs().argmin(dim=-1)  # 0 to 15: the four bits
by_hand = (state.code[nearest] * scales).reshape(weights.shape)

library = dequantize_4bit(rounded.model.layers[0].mlp.up_proj.weight.data, state).float()
equal = torch.isclose(by_hand, library, rtol=0.01, atol=1e-6).float().mean().item()
print(f"{equal:.2%} of {by_hand.numel():,} weights are what the library gives")
assert equal > 0.999, "rounding by hand should give the library's weights"

# %% [markdown]
# Why these sixteen levels, and not sixteen at equal distances? Look at where the weights are.

# %%
from sftkit.plots_holdings import plot_levels

plot_levels(scaled.flatten()[:200_000].tolist(), state.code.tolist())

# %% [markdown]
# Weights of a trained network are spread about like a bell. `nf4` ("normal float") puts its levels where a bell has its
# weights, so that each level is used about equally often. `fp4` takes a tiny floating-point number instead, and `int8`
# takes 256 equal steps per row, which is finer and twice as large.
#
# **Double quantization** rounds the scales as well: each becomes 8 bits, and every 256 of them share one 32-bit scale of
# their own. It saves little, and it costs next to nothing.
#
# ### Exercise 04.1
#
# How many bits does a weight take *on average* in nf4, its share of the scales included: with scales of 32 bits, and with
# double quantization? (The sixteen levels are shared by the whole model and do not count.)

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
plain = 4 + 32 / 64
double = 4 + 8 / 64 + 32 / (64 * 256)
### END SOLUTION
check("04.1", (plain, double), blocksize=state.blocksize)

# %% [markdown]
# ## 3 · Measure
#
# A prediction is worth what its error is. So each way is now tried, in a process of its own: what one model needed at its
# peak would otherwise still be there when the next one is measured. Each process loads the model, scores passages of
# general text, answers test questions, then trains a few steps.

# %%
from sftkit.holdings import try_holding

tried = {}
for name, one in recipes.items():
    tried[name] = try_holding(one)
    found = tried[name]
    print(f"{name:<12} weights {found.weight_bytes / 1e6:>4.0f} MB, peak {found.peak_bytes / 1e6:,.0f} MB, "
          f"loaded in {found.load_s:.1f} s, {found.step_s:.1f} s per training step")  # fmt: skip

# %% [markdown]
# Compare the speeds: rounding is there to save memory, not time. Before each product the weights have to be written out
# again. And compare the weights with their prediction, then the peaks with theirs:

# %%
plot_memory(predicted, measured={name: one.peak_bytes for name, one in tried.items()})

# %% [markdown]
# A diamond to the right of its black line is a prediction that was too low. Plan with the upper end of the line, and leave some
# room beyond it.
#
# What does rounding cost? Two measures. The *loss* on general text: how much more surprised is the rounded model? Both
# models read the same passages, so the change is compared passage by passage, with a 95 % interval. And *agreement*: at how
# many places does it expect the same next word as the exact model?

# %%
from sftkit.holdings import agreement_of, cost_of
from sftkit.plots_holdings import plot_holdings

costs = {name: cost_of(one, tried["fp32"]) for name, one in tried.items() if name != "fp32"}
for name, cost in costs.items():
    tokens, answers = agreement_of(tried[name], tried["fp32"])
    low, high = cost.ci95
    print(f"{name:<12} loss {cost.delta:+.3f} ({low:+.3f} to {high:+.3f}) nats per token, "
          f"{tokens:.1%} of next tokens, {answers:.0%} of answers as in fp32")  # fmt: skip
plot_holdings(tried, reference="fp32")

# %% [markdown]
# In the middle, orange is a cost that we are sure of, blue one that may be nothing. Sixteen bits change next to nothing, eight
# bits little; four bits cost this small model a good deal, and double quantization adds nothing to that. Answers are compared
# word for word: one other word early in an answer changes all that follows, so they agree less often than single tokens.
# That is not the same as being wrong.
#
# ### Exercise 04.2
#
# `costs` holds the change of loss for each way, with `delta` and `ci95`. For which ways are we sure that the model got worse?
# Give their names.

# %% tags=["exercise"]
### BEGIN SOLUTION
worse = {name for name, cost in costs.items() if cost.ci95[0] > 0}
### END SOLUTION
check("04.2", worse, costs=costs)

# %% [markdown]
# ## 4 · Train on four bits
#
# QLoRA is nothing more than this: a base in 4 bits, frozen, and an adapter in full precision beside it. Gradients pass
# *through* the rounded weights and change the adapter alone. It can even learn to make up for the rounding. For comparison
# the same adapter, from the same seed and on the same examples, is trained on the base in bfloat16.

# %%
import dataclasses
from contextlib import closing

from sftkit import attach_adapter, chat_loss, count_parameters, make_watcher
from sftkit.run import make_measure
from sftkit.train import train

plan = dataclasses.replace(recipe.train, max_steps=train_steps)
trained, tuned = {}, {}
for name in ("bf16", "nf4, double"):
    tuned[name] = attach_adapter(load_model(recipes[name].model), recipe.adapter, seed=plan.seed)
    measure = make_measure(tuned[name], data.validation)
    with closing(make_watcher(heldout_start=measure()["heldout_loss"])) as watcher:
        trained[name] = train(
            tuned[name],
            data.train,
            plan,
            objective=chat_loss,
            measure=measure,
            on_step=watcher.on_step,
        )
print(count_parameters(tuned["nf4, double"]))

# %% [markdown]
# Were the two runs equally good? Ask them both the same questions that neither was trained on.

# %%
from sftkit.evidence.perplexity import mean_loss, score_examples
from sftkit.evidence.statistics import paired_change

scores = {name: score_examples(model, data.validation) for name, model in tuned.items()}
gap = paired_change(
    [score.mean for score in scores["bf16"]],
    [score.mean for score in scores["nf4, double"]],
    groups=[example.group for example in data.validation],
    weights=[score.tokens for score in scores["bf16"]],
)
for name, score in scores.items():
    print(
        f"{name:<12} held-out loss {mean_loss(score):.3f}, trained in {trained[name].seconds:.0f} s"
    )
print(
    f"nf4 against bf16: {gap.delta:+.3f} ({gap.ci95[0]:+.3f} to {gap.ci95[1]:+.3f}) nats per token"
)

# %% [markdown]
# An adapter belongs to the base it was trained on, *in the form it was trained on*. Loaded beside the exact weights it would
# answer a little differently. Save it, load the 4-bit base afresh, and put it back: the numbers are the same to the last bit.

# %%
import tempfile

from sftkit.adapter_files import load_adapter, save_adapter

ids = torch.tensor([data.validation[0].input_ids])
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    save_adapter(tuned["nf4, double"], folder)
    again = load_adapter(load_model(recipes["nf4, double"].model), folder)
    difference = (again.eval()(ids).logits - tuned["nf4, double"].eval()(ids).logits).abs().max()
print(f"largest difference of any logit after reloading: {difference.item()}")
assert difference == 0, "a reloaded adapter must answer as before"

# %% [markdown]
# ## 5 · The honest cost
#
# There is a reason to distrust what was measured so far. The name `smollm2-135m` stands here for weights that were *already
# rounded once*: they come out of a 4-bit file (Q4_1: sixteen levels for every 32 weights) and were written out in full
# precision again. You can see it: among 32 neighbouring weights there are few different ones. So our "exact" model is not
# the one that was trained, and what a *first* rounding costs cannot be read off it.

# %%
from sftkit.model import load_as
from sftkit.settings import ModelSettings
from transformers import AutoModel


def minilm(quantization):
    held = ModelSettings(name="minilm-l6", device="cpu", dtype="float32", quantization=quantization)
    return load_as(AutoModel, held, heads=["pooler"])


original = minilm("none")
layer = original.encoder.layer[0].intermediate.dense
for name, matrix in {"smollm2-135m": weights, "minilm-l6": layer.weight}.items():
    rows = matrix.detach().reshape(-1, 32)[:1000]
    distinct = sum(len(row.unique()) for row in rows) / len(rows)
    print(f"{name:<13} {distinct:.1f} different values among 32 neighbouring weights")

# %% [markdown]
# MiniLM, a small model for sentence vectors, comes with its weights as they were trained. Rounding it is an honest first
# rounding. First the weights themselves: how large is the error, compared with the weights?

# %%
from statistics import fmean

from sftkit.holdings import rounding_errors

kinds = ("int8", "nf4", "fp4")
small = {kind: minilm(kind) for kind in kinds}
for kind in kinds:
    print(
        f"minilm-l6    {kind:<5} error {fmean(rounding_errors(small[kind], original).values()):.1%}"
    )
print(f"smollm2-135m nf4   error {fmean(rounding_errors(rounded, exact).values()):.1%}")

# %% [markdown]
# Then what it does to the model's work. MiniLM turns each text into a vector; texts that mean alike lie near each other.
# For each of some hundred sentences of privacy policies: does it keep its nearest neighbour?

# %%
from sftkit.catalog import dataset_rows

read = load_tokenizer(ModelSettings(name="minilm-l6"))
sentences = list(dict.fromkeys(row["text"] for row in dataset_rows("privacy-qa")))[:texts]


def vectors(model):
    batch = read(sentences, return_tensors="pt", padding=True, truncation=True, max_length=96)
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


truth = vectors(original)
self_left_out = torch.eye(len(sentences)) * 9
for kind, model in small.items():
    found = vectors(model)
    kept = (found @ found.T - self_left_out).argmax(1) == (truth @ truth.T - self_left_out).argmax(
        1
    )
    print(f"{kind:<5} cosine to the exact vector {(found * truth).sum(1).mean():.4f}, "
          f"{kept.float().mean():.0%} keep their nearest neighbour")  # fmt: skip

# %% [markdown]
# Eight bits change next to nothing. Four bits cost something here too: the weights are off by about a tenth, and for a good
# share of the sentences another one is now the nearest. Both models of this notebook are very small. What is said of
# 4-bit models being as good as exact ones was measured on models many times their size (Dettmers et al. 2023: 7 to 65
# billion parameters). On yours, measure.
#
# ## 6 · What fits your machine?
#
# The catalog knows larger models. They need the Hugging Face hub, but their configurations are stored here, so the question
# "would it fit?" is answered without a download. For a GPU, LoRA of rank 16, batches of 2,048 tokens:

# %%
from sftkit.catalog import names
from sftkit.settings import AdapterSettings, TrainSettings

larger = [name for name in names("model") if name not in ("smollm2-135m", "minilm-l6")]


def needed(name, quantization, batch=2048):
    held = ModelSettings(name=name, quantization=quantization, dtype="bfloat16")
    plan = {"adapter": AdapterSettings(), "train": TrainSettings(max_tokens_per_batch=batch)}
    return estimate(model_config(held), model=held, **plan, device="cuda").high


print(f"{'':<14}{'bf16':>9}{'nf4':>9}   GB at most")
for name in larger:
    print(f"{name:<14}{needed(name, 'none') / 1e9:>9.1f}{needed(name, 'nf4') / 1e9:>9.1f}")

# %% [markdown]
# These are predictions, and no GPU was there to test them on: start with a few steps. A look at the parts shows where to
# save next. Here qwen3-8b in nf4, with its activations kept for the backward pass, or computed again there
# (`train: {activation_checkpointing: true}`):

# %%
held = ModelSettings(name="qwen3-8b", quantization="nf4", dtype="bfloat16")
bars = {
    name: estimate(
        model_config(held),
        model=held,
        adapter=AdapterSettings(),
        train=TrainSettings(max_tokens_per_batch=2048, activation_checkpointing=again),
        device="cuda",
    )
    for name, again in {"kept": False, "computed again": True}.items()
}
plot_memory(bars)

# %% [markdown]
# ### Exercise 04.3
#
# You have a GPU with 16 GB. Which is the largest model of the list, in parameters, that is predicted to fit in nf4 at its
# upper end, and how large a batch does it take? Try batches of 512, 1024, 2048 and 4096 tokens with `needed`, and hand in
# the name of the model and the largest of these batches.

# %% tags=["exercise"]
### BEGIN SOLUTION
_batches = (512, 1024, 2048, 4096)
_fitting = [(n, b) for n in larger for b in _batches if needed(n, "nf4", b) <= 16e9]
model_name = _fitting[-1][0]
batch = max(b for n, b in _fitting if n == model_name)
### END SOLUTION
check("04.3", (model_name, batch), models=larger, needed=needed, budget=16e9)

# %% [markdown]
# ## What you have seen
#
# - Memory is weights, adapter, activations, logits and the program; quantization shrinks the first alone.
# - 4 bits are sixteen levels and a scale per 64 weights; the levels of nf4 lie where weights are.
# - A cost has an interval. Here it was measured twice, on weights that had been rounded before and on original ones.
# - QLoRA trains an adapter beside a 4-bit base. It saves memory, not time, and the adapter belongs to that base.
#
# A recipe says it in one line:
#
# ```yaml
# model: {name: qwen3-4b, quantization: nf4}
# ```
#
# `sftkit run RECIPE --dry-run` predicts memory before you start. What cannot work, such as 4 bits on a Mac's GPU, or
# quantizing a model that is quantized already, is refused before any weight is read.

# %%
from sftkit.exercises import progress

progress("04")
