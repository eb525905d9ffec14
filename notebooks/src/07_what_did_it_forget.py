# ---
# jupyter:
#   sftkit:
#     short:
#       steps: 2
#       max_tokens_per_batch: 160
#       items_per_probe: 6
#       passages: 10
#       answers: 2
#       held_out: 10
#       cures: [slow]
#       strengths: [0.5, 1.0]
#       domain_steps: 1
#       domain_rows: 60
#       resamples: 200
#       out: runs/short/frontier
# ---

# %% [markdown]
# # 07 · What did it forget?
#
# A fine-tune that learned everything you taught it can be a worse model than the one you began with. Nobody notices, because
# everybody tests what was taught. In this notebook you test the rest: you make one run that forgets and one that hardly does,
# tell them apart by numbers, and then bring back what was lost in four ways.
#
# Afterwards you will be able to
#
# - measure forgetting by two things that see differently, *drift* and *ability*, and say why one alone misleads;
# - test several probes at once without being fooled by the worst of them (Holm's correction);
# - turn a finished adapter down, replay general text, freeze blocks or lower the rate, and compare all four in one figure;
# - choose among runs by one half of your probes and report by the other.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 5.6 | 1.9 GB | 2026-11-23 |
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
steps = 24  # optimizer steps of every training on the shop
max_tokens_per_batch = 320  # tokens in each of them
gentle_rate = 1e-3  # learning rate of the gentle run
harsh_rate = 5e-3  # and of the harsh one
items_per_probe = 80  # questions of each probe; one half chooses, the other reports
passages = 32  # general passages that report, and as many that choose
held_out = 24  # held-out answers whose loss says what was gained
answers = 16  # shop questions that are answered in words, for the report
cures = ["replay", "frozen", "slow"]  # trainings of section 4
strengths = [0.25, 0.5, 1.0]  # the harsh adapter is measured at each, 1 among them
domain_steps = 12  # steps on real text, in section 7
domain_rows = 240  # rows of it
resamples = 2000  # draws of each interval
seed = 0  # of adapters and batches
out = "runs/frontier"  # folder for what is kept

# %% [markdown]
# ## 1 · Two ways to see it
#
# **Ability** is what a user would notice: questions of general knowledge and common sense with several options. The model is
# right or wrong, so this speaks plainly, and it is coarse: an answer stays right long after the model has become unsure of it.
#
# **Drift** is finer: how surprised is the model by ordinary text, in nats per token, compared with before? It sees small
# changes early, but cannot say whether anybody would mind. So we always look at both.
#
# Each set of questions is cut into two halves, by a fixed rule. One half may *choose* (a strength, a recipe); the other half
# only *reports*. General passages are kept apart in the same way.

# %%
import time
from dataclasses import replace

clock = time.perf_counter()
from sftkit.frontier import FrontierBench, frontier
from sftkit.settings import (
    AdapterSettings, DataSettings, EvaluateSettings, ModelSettings, Recipe, TrainSettings,
)  # fmt: skip

harsh = Recipe(
    name="harsh",
    model=ModelSettings(name=model_name),
    data=DataSettings(source="shop", split_by="split", max_tokens=128, system=""),
    adapter=AdapterSettings(r=16, lora_alpha=32),
    train=TrainSettings(
        learning_rate=harsh_rate, epochs=4, max_steps=steps, heldout_evaluations=1, seed=seed,
        max_tokens_per_batch=max_tokens_per_batch,
    ),
    evaluate=EvaluateSettings(
        knowledge_items=answers, style_items=held_out, items_per_probe=items_per_probe,
        drift_passages=passages, passage_tokens=64, resamples=resamples, max_new_tokens=12,
    ),
)  # fmt: skip
bench = FrontierBench.of(harsh, passages=passages)

# %%
chooses, reports = bench.trial.forgetting, bench.exam.forgetting
for name in harsh.evaluate.probes:
    counts = [test.names.count(name) for test in (chooses, reports)]
    print(f"{name:<14} {counts[0]:>3} questions choose, {counts[1]:>3} report")
print(f"general passages: {len(chooses.passages)} choose, {len(reports.passages)} report")
item = reports.items[0]
print(f"\n{item.question}")
for place, option in enumerate(item.options):
    print(f"  {'right:' if place == item.answer else '':<7}{option}")

# %% [markdown]
# ## 2 · A gentle run and a harsh one
#
# Both learn facts of Dunnowick, the shop that does not exist, for the same number of steps. They differ in two things: the gentle
# one has a fifth of the learning rate, and a seventh of its rows is general text that it goes on reading. The base is loaded
# once, and each adapter is taken off again afterwards.

# %%
gentle = replace(
    harsh,
    name="gentle",
    data=replace(harsh.data, replay="boolq", replay_share=0.15),
    train=replace(harsh.train, learning_rate=gentle_rate),
)
pair = frontier([gentle, harsh], report=("gentle", "harsh"), bench=bench)

# %% [markdown]
# Both runs were named for the report before anything was measured, so nothing was chosen here. The verdicts in full. Look
# for the interval in each sentence: it decides, and never the number before it.

# %%
for name in ("gentle", "harsh"):
    verdicts = pair.report(name).verdicts
    print(f"{name}\n  learned: {verdicts.style.sentence}\n  {verdicts.knowledge.sentence}")
    print(f"  drift:   {verdicts.drift.sentence}\n  ability: {verdicts.ability.sentence}\n")

# %%
from sftkit.plots import plot_forgot

plot_forgot(pair.report("gentle").forgot)

# %%
plot_forgot(pair.report("harsh").forgot)

# %% [markdown]
# The shaded band is what we agreed to call unmoved, and an interval inside it means *kept*. An interval that reaches out of the band
# and over zero means *undecided*: that is neither "kept" nor "lost", it is a test with too few questions. Compare how wide
# the lines are in their bands: a few dozen questions can rule out a loss of ability only just, or not at all, where
# as many passages decide about drift with ease. That is why one measures both.
#
# ### Several probes, one false alarm
#
# Three probes are three chances to look bad by accident. Holm's correction multiplies the smallest p-value by three, the
# next by two, and never lets a later one be smaller than an earlier one. The raw p-values come from the questions
# that flipped: if nothing was lost, as many should turn right as wrong (McNemar's test).

# %%
from sftkit.evidence.shares import mcnemar_exact

for probe in pair.report("harsh").forgot.probes:
    p_value = mcnemar_exact(probe.flipped_to_wrong, probe.flipped_to_right)
    print(
        f"{probe.name:<14} {probe.flipped_to_wrong:>2} turned wrong, "
        f"{probe.flipped_to_right:>2} turned right: p = {p_value:.3f}"
    )

# %% [markdown]
# ### Exercise 07.1
#
# Suppose that a run on your own data has these raw p-values, and that 0.05 is your level. Which of them are still below
# it when they are corrected? Hand in a dictionary from each probe's name to its corrected p-value; none may exceed 1.

# %%
raw = {"piqa": 0.012, "openbookqa": 0.031, "commonsenseqa": 0.027}

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
corrected, largest = {}, 0.0
for _rank, _name in enumerate(sorted(raw, key=raw.get)):
    largest = max(largest, min(1.0, (len(raw) - _rank) * raw[_name]))
    corrected[_name] = largest
### END SOLUTION
check("07.1", corrected, raw=raw)

# %% [markdown]
# Accuracy only counts flips. The log-probability of the right option uses every question, also those that did not flip. Both, with
# their corrected p-values. Mind the sign of the second:

# %%
for name in ("gentle", "harsh"):
    for probe in pair.report(name).forgot.probes:
        low, high = probe.logprob_ci95
        print(
            f"{name:<7} {probe.name:<14} accuracy {100 * probe.delta:+5.1f} points "
            f"(p {probe.p_value:.3f}), log-probability {probe.logprob_delta:+.2f} "
            f"[{low:+.2f} to {high:+.2f}] (p {probe.logprob_p_value:.3f})"
        )

# %% [markdown]
# Where a log-probability *rose*, nothing was learned about these questions. The shop teaches short answers, and the options here
# are short answers too: the model has become surer of their *form*. So a rise on one probe can hide a fall on another, and this
# measure is read probe by probe. Drift has no such excuse: ordinary text has not changed its form.
#
# ### Read what flipped
#
# Numbers say how much, reading says what. Are these slips, or does the model no longer understand the question?

# %%
flips = pair.report("harsh").forgot.flips
lost = [flip for flip in flips if flip.base == flip.right]
print(f"{len(lost)} of {len(flips)} kept flips turned wrong; the first of each probe:\n")
seen = {}
for flip in lost:
    seen.setdefault(flip.probe, flip)
for probe, flip in seen.items():
    print(f"[{probe}] {flip.question}\n  base, right: {flip.base}\n  tuned: {flip.tuned}\n")

# %% [markdown]
# ### Exercise 07.2
#
# "Your run lost nothing: as many questions turned right as wrong!" Could it be? Hand in, for the harsh run, the number of kept flips
# that turned wrong and the number that turned right, as a pair.

# %% tags=["exercise"]
### BEGIN SOLUTION
turned = (
    sum(flip.base == flip.right for flip in flips),
    sum(flip.tuned == flip.right for flip in flips),
)
### END SOLUTION
check("07.2", turned, flips=flips)

# %% [markdown]
# ## 3 · Cure 1: turn it down
#
# The cheapest cure needs no training. An adapter is an *addition* to the base, so it can be added at half its strength. At 0 it is
# the base, bit for bit; at 1 it is as trained. What lies between is the **learn-forget curve** of this one training. Before
# you run it: will half the strength cost half the gain?

# %%
from sftkit.plots_frontier import plot_frontier

curve = frontier([harsh], strengths={"harsh": strengths}, bench=bench)
plot_frontier(curve)

# %% [markdown]
# Up is more gain, left is less forgetting. The lines are 95 % intervals, the ring is the chosen point, and the shaded band is the
# margin. The rule of the choice was fixed before: the largest gain among points whose drift stays within the margin by its
# interval, and whose accuracy is not shown to have fallen.

# %%
print(curve.why)

# %% [markdown]
# ### Exercise 07.3
#
# Choose by drift alone: the strength with the largest gain among those whose drift interval ends below `margin`, or 0 if there is
# none. `table` holds for each strength the gain, and the upper end of the drift interval.

# %%
margin, table = curve.drift_margin, {}
for point in curve.points:
    gain = curve.change("gain", after=point.name).delta
    drift = curve.change("drift", after=point.name)
    table[point.strength] = (gain, drift.ci95[1])
    drifts = f"drift {drift.delta:+.3f}, at most {drift.ci95[1]:+.3f}"
    print(f"strength {point.strength:<5g} gain {gain:+.2f}, {drifts}")

# %% tags=["exercise"]
### BEGIN SOLUTION
_within = [strength for strength, (_, most) in table.items() if most < margin]
strength = max(_within, key=lambda one: table[one][0], default=0)
### END SOLUTION
check("07.3", strength, table=table, margin=margin)

# %% [markdown]
# ## 4 · Cures 2 to 4: replay, freeze, slow down
#
# The other cures change the training. Each of these recipes changes *one* thing of the harsh run:
#
# - **replay**: a third of the rows is general text, so that the loss itself has a say in it;
# - **frozen**: only the last third of the blocks gets an adapter; what the first blocks do stays as it is;
# - **slow**: a third of the learning rate.

# %%
replay = replace(harsh, name="replay", data=replace(harsh.data, replay="boolq", replay_share=0.33))
blocks = bench.base.config.num_hidden_layers
last_third = (2 * blocks // 3, blocks - 1)
frozen = replace(harsh, name="frozen", adapter=replace(harsh.adapter, layers=last_third))
slow = replace(harsh, name="slow", train=replace(harsh.train, learning_rate=harsh_rate / 3))
tried = [recipe for recipe in (replay, frozen, slow) if recipe.name in cures]
grid = frontier([gentle, harsh, *tried], strengths={"harsh": strengths}, bench=bench)

# %% [markdown]
# Nothing that was measured before is measured again: the bench keeps it. Now all of it in one figure. A point is *beaten* if another
# gains at least as much and forgets at most as much. The points that nobody beats are the **Pareto set**: among them you
# can only trade one for the other.

# %%
plot_frontier(grid)

# %% [markdown]
# Do not trust the positions alone: points whose intervals overlap may change places with another draw of questions. For
# each point that is beaten, the kit compares it with the one that beats it, question by question, and says whether *both*
# differences are beyond chance. If not, it is undecided.

# %%
from sftkit.frontier_records import standings

for forgetting in ("drift", "ability"):
    print(f"--- against {forgetting}")
    for one in standings(grid, forgetting):
        print(one.sentence)

# %% [markdown]
# ### Exercise 07.4
#
# Find the Pareto set yourself. `places` holds for each point its gain and its drift. Hand in the names of all points that no other
# beats, as a set.

# %%
places = {
    point.name: tuple(grid.change(axis, after=point.name).delta for axis in ("gain", "drift"))
    for point in grid.points
}
for name, (gain, drift) in places.items():
    print(f"{name:<14} gain {gain:+.3f}, drift {drift:+.3f}")

# %% tags=["exercise"]


### BEGIN SOLUTION
def _beats(one, other):
    return one != other and one[0] >= other[0] and one[1] <= other[1]


pareto = {name for name, own in places.items() if not any(_beats(o, own) for o in places.values())}
### END SOLUTION
check("07.4", pareto, places=places)

# %% [markdown]
# ## 5 · Chosen on one half, reported on the other
#
# We looked at many points and took one of the best. Part of "best" is luck with the questions, so the chosen point's numbers flatter
# it. Hence the other half: it saw no choice, and is asked of the chosen point only now. Compare the two lines of numbers.

# %%
from sftkit.frontier_records import in_words

print(grid.why, "\n")
told = grid.report(grid.chosen)
print(f"chose:   drift {in_words('drift', grid.change('drift', after=grid.chosen))}")
low, high = told.forgot.drift.ci95
print(f"reports: drift {told.forgot.drift.delta:+.3f} ({low:+.3f} to {high:+.3f})\n")
for name in ("style", "knowledge", "drift", "ability"):
    print(getattr(told.verdicts, name).sentence)

# %% [markdown]
# The record says which half was asked, and a gate refuses a run that reports on the half that chose. What is kept: the whole frontier,
# item by item, and the recipe of the chosen point, with its strength. `sftkit run` makes just this adapter from it.

# %%
from pathlib import Path

from sftkit.frontier import load_frontier, save_frontier
from sftkit.recipe import recipe_from_dict, yaml_text

kept = save_frontier(grid, Path(out) / "frontier.json")
assert load_frontier(kept) == grid, "what is read back should be what was saved"
chosen = recipe_from_dict(grid.point(grid.chosen).recipe)
(Path(out) / "chosen.yaml").write_text(yaml_text(chosen), encoding="utf-8")
print(f"{kept}: {kept.stat().st_size:,} bytes; reported on the half: {told.forgot.half}")

# %% [markdown]
# ## 6 · The same on real text
#
# The shop was made up. Now definitions of software weaknesses (MITRE's CWE), which are written in a language of their own. Weaknesses in
# the test were never trained, so what can be learned here is style. Which cures held up?

# %%
plain = replace(
    harsh,
    name="plain",
    data=DataSettings(
        source="cwe", where={"aspect": ["description"]}, group_by="weakness", limit=domain_rows,
        max_tokens=128, system="", validation_fraction=0.2, test_fraction=0.2,
    ),
    train=replace(harsh.train, max_steps=domain_steps),
    evaluate=replace(harsh.evaluate, knowledge="none"),
)  # fmt: skip
mixed = replace(plain, name="replay", data=replace(plain.data, replay="boolq", replay_share=0.33))
domain = frontier(
    [plain, mixed],
    strengths={"plain": [0.5, 1.0]},
    report=("plain",),
    bench=FrontierBench.of(plain, passages=passages, like=bench),
)
plot_frontier(domain)

# %%
print(domain.why)
for one in standings(domain):
    print(one.sentence)
for one in domain.reports:
    print(f"\n{one.name}\n  {one.verdicts.style.sentence}")
    print(f"  {one.verdicts.drift.sentence}\n  {one.verdicts.ability.sentence}")

# %% [markdown]
# One seed, one small model, one rate: which cure is best for *your* data is not decided here. What carries over is the way to
# find out, and it is cheap.
#
# ## Summary

# %%
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory of this process {peak_memory_bytes() / 1e9:.2f} GB")
print(f"{bench.environment.dtype}, seed {seed}, {time.strftime('%Y-%m-%d')}")

# %% [markdown]
# - Test what was *not* taught, before and after, on the same questions: drift for small changes, ability for what users notice.
# - "Kept" is a claim, too: it needs an interval inside a margin. Too few questions give "undecided".
# - Several probes need one correction; then read the flips.
# - Turning the adapter down costs no training. Replay, frozen blocks and a lower rate cost a training each. Draw them in one figure.
# - Choose by one half, report by the other.
#
# In a recipe, all of it is settings:
#
# ```
# sftkit run my-recipe.yaml --out runs/mine --set adapter.strength=0.5
# sftkit run my-recipe.yaml --out runs/mine --set data.replay=boolq --set data.replay_share=0.2
# sftkit run my-recipe.yaml --out runs/mine --set adapter.layers=[20,29] --set adapter.r=4
# ```

# %%
from sftkit.exercises import progress

progress("07")
