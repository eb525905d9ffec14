# ---
# jupyter:
#   sftkit:
#     short:
#       epochs: 1
#       weaker_epochs: 1
#       max_steps: 1
#       items_per_probe: 2
#       drift_passages: 6
#       knowledge_items: 4
#       prompts: 2
#       out: runs/short/report-and-share
# ---

# %% [markdown]
# # 09 · Report and share
#
# A fine-tune is finished when somebody else can judge it, repeat it and use it. Each of these can go wrong without a sound:
# a report that leaves out what was forgotten, a recipe that no longer gives the same weights, an export that answers in another
# way than what was tested. Here you do all three, and check each.
#
# Afterwards you will be able to
#
# - read a report for what is ruled out, and not only for what was found;
# - put two runs side by side and name every difference between them;
# - show that a recipe gives the same adapter, bit for bit;
# - export merged weights and a GGUF file, and prove that they answer like what was tested;
# - say before training what a server will refuse.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 14.7, on cores shared with other work | 2.7 GB | 2026-11-23 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: model, data and probes come from the Python package index, so you need no account.

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
epochs = 3  # passes of the first run
weaker_epochs = 1  # passes of the second run, which learns less
max_steps = None  # optimizer steps of each run; None runs all
items_per_probe = 40  # multiple-choice questions per probe
drift_passages = 40  # passages of general text
knowledge_items = 40  # questions to be answered in words
prompts = 8  # conversations on which an export is compared with what was tested
out = "runs/report-and-share"  # folder for runs and exports

# %% [markdown]
# ## 1 · Two runs
#
# The demo's recipe, made shorter, and the same with fewer passes. Nothing else differs.

# %%
import shutil
import time
from pathlib import Path

from sftkit.progress import make_watcher
from sftkit.run import find_recipe, run

clock = time.perf_counter()
folder = Path(out)
shutil.rmtree(folder, ignore_errors=True)


def carry_out(name, passes):
    """Run the demo's recipe with this many passes."""
    changes = {
        "name": name,
        "train.epochs": passes,
        "train.max_steps": max_steps,
        "evaluate.items_per_probe": items_per_probe,
        "evaluate.drift_passages": drift_passages,
        "evaluate.knowledge_items": knowledge_items,
    }
    overrides = [f"{key}={value}" for key, value in changes.items() if value is not None]
    recipe = find_recipe("demo", overrides=overrides)
    return run(recipe, folder / name, watcher=make_watcher("silent"))


# %%
records = {"full": carry_out("full", epochs), "weaker": carry_out("weaker", weaker_epochs)}
for name, record in records.items():
    print(f"{name}: {record.verdicts.summary}")

# %% [markdown]
# ## 2 · Read a report
#
# Each run wrote `report.html`: one file without scripts, which can be mailed. It is drawn from `run.json` alone, so
# `sftkit report RUN` can draw it again at any time. Its first figure:

# %%
from IPython.display import Image, display

display(Image(folder / "full" / "plots" / "overview.png", width=900))
for path in sorted((folder / "full").iterdir()):
    print(path.name)

# %% [markdown]
# An interval says more than a verdict. Here are the probes of the run with their change in accuracy and its 95 % interval.

# %%
probes = {one.name: (one.delta, *one.ci95) for one in records["full"].forgot.probes}
margin = 0.05
for name, (delta, low, high) in probes.items():
    print(f"{name:<15} {100 * delta:+5.1f} points, {100 * low:+5.1f} to {100 * high:+5.1f}")

# %% [markdown]
# ### Exercise 09.1
#
# On which probes is a loss of 5 points or more *ruled out*? Answer with a set of names; it may be empty.

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
ruled_out = {_name for _name, (_, _low, _) in probes.items() if _low > -margin}
### END SOLUTION
check("09.1", ruled_out, probes=probes, margin=margin)

# %% [markdown]
# ## 3 · Compare runs
#
# `sftkit report RUN RUN` writes the comparison as a page. The functions are the same here. Only differences are named, and
# of recipe, data and environment all of them.

# %%
from sftkit.compare import compare_runs
from sftkit.report.comparison import write_comparison

comparison = compare_runs([folder / "full", folder / "weaker"])
for difference in comparison.differences:
    print(f"{difference.part}: {difference.place} is {' and '.join(difference.values)}")
print(*comparison.comparable, sep="\n")
page = write_comparison(comparison, folder / "comparison.html")

# %%
from sftkit.plots_compare import plot_compared

plot_compared(comparison)

# %% [markdown]
# ### Exercise 09.2
#
# Two recipes as nested dictionaries. Collect the settings in which they differ, as names such as `"train.epochs"`. Both have the
# same sections, with settings below.

# %%
first, second = (
    {part: values for part, values in record.recipe.items() if isinstance(values, dict)}
    for record in records.values()
)
print(list(first))

# %% tags=["exercise"]
### BEGIN SOLUTION
differing = {
    f"{_part}.{_name}"
    for _part in first
    for _name in first[_part]
    if first[_part][_name] != second[_part].get(_name)
}
### END SOLUTION
check("09.2", differing, first=first, second=second)

# %% [markdown]
# ## 4 · Do it again
#
# A run keeps the hashes of what went in (rows, base model, tokenizer, chat template) and of what came out. Run the weaker one again
# from its own folder. **Check**: the adapter is the same, bit for bit.

# %%
from sftkit.compare import reproduction
from sftkit.recipe import load_recipe

again = run(
    load_recipe(folder / "weaker" / "recipe.yaml"), folder / "again", watcher=make_watcher("silent")
)
print(reproduction(again, records["weaker"]))
for what, value in again.training.fingerprints.items():
    print(f"{what:<18} {value[:26]}…")
assert again.training.fingerprints == records["weaker"].training.fingerprints

# %% [markdown]
# On another machine the bits may differ; then the sentence names what else does: a version, a processor, a changed file.
#
# ## 5 · Export, and prove it
#
# Merging adds the adapter's update to the weights: W' = W + scale · B A. Rounding makes small differences, and a mistake large
# ones: merged into 4-bit weights, the update drowns in their rounding; with another chat template, the same weights see other words.
# Neither gives an error. So every export is loaded again as a user would load it, and answers the same conversations.

# %%
from sftkit.export import export_run

merged = export_run(folder / "full", folder / "merged", to="merged", prompts=prompts)
print(merged.parity.sentence)
for name, size in merged.files:
    print(f"  {name:<26} {size / 1e6:8.1f} MB")

# %% [markdown]
# A GGUF file holds weights, tokenizer and template in one, for llama.cpp and Ollama. F16 rounds each weight to 11 bits. `Modelfile` and
# the vLLM command beside it were written, not run: nothing here serves them.

# %%
gguf = export_run(
    folder / "full", folder / "gguf", to="gguf", gguf="f16", prompts=prompts, check="llama.cpp"
)
print(gguf.parity.sentence)
for finding in gguf.serving:
    print(f"llama.cpp: {finding}")
print((folder / "gguf" / "Modelfile").read_text(encoding="utf-8")[:400])

# %% [markdown]
# Three measures, because each is blind to something: *agreement* of the most likely token does not see probabilities; *KL* averages, so it
# hides one bad place among many; the *largest difference of a logit* sees that place and exaggerates it.
#
# ### Exercise 09.3
#
# At one place the tested model gave three tokens these probabilities, the served one others. What is KL(tested ‖ served), in nats?

# %%
tested, served = [0.70, 0.20, 0.10], [0.55, 0.25, 0.20]

# %% tags=["exercise"]
### BEGIN SOLUTION
import math

divergence = sum(_p * math.log(_p / _q) for _p, _q in zip(tested, served, strict=True))
### END SOLUTION
check("09.3", divergence, tested=tested, served=served)

# %% [markdown]
# Now the mistake on purpose: the same weights behind another chat template. **Check**: it is flagged, with the first other token.

# %%
from sftkit.model import load_model, load_tokenizer
from sftkit.parity import LIMITS, Speaker, check_parity
from sftkit.settings import ModelSettings

place = ModelSettings(name=str(folder / "merged"), dtype="float32")
weights, own = load_model(place), load_tokenizer(place)
other = load_tokenizer(place)
other.chat_template = (
    "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)
questions = [
    [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.expected}]
    for one in records["full"].answers[:prompts]
]
flagged = check_parity(
    Speaker(model=weights, tokenizer=own),
    Speaker(model=weights, tokenizer=other),
    questions,
    LIMITS["float32"],
)
print(flagged.sentence)
assert flagged.faults

# %% [markdown]
# ## 6 · What a server takes
#
# Some servers load adapters beside the base. Their rules are known, so they can be asked before training.

# %%
from sftkit.serving import lint_serving

for config in (
    {"peft_type": "LORA", "r": 16, "lora_alpha": 32},
    {"peft_type": "LORA", "r": 24, "lora_alpha": 32, "use_dora": True},
    {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "modules_to_save": ["lm_head"]},
):
    print(config)
    for server in ("vllm", "llama.cpp"):
        found = lint_serving(config, server)
        print(f"  {server}: {'; '.join(map(str, found)) or 'nothing against it'}")

# %% [markdown]
# ### Exercise 09.4
#
# vLLM sets memory aside for adapters of one rank, `--max-lora-rank`, which has to be one of 1, 8, 16, 32, 64, 128, 256, 320 and 512. You trained
# with this rank. With what do you start it?

# %%
rank = 24

# %% tags=["exercise"]
### BEGIN SOLUTION
max_lora_rank = 32
### END SOLUTION
check("09.4", max_lora_rank, rank=rank)

# %% [markdown]
# ## 7 · Before it leaves your machine
#
# The model card carries what the hub needs: base model, licence, measured results. Licences are not decided here, but what does not fit
# or is not stated is flagged. And what looks like a key or a mail address is blacked out in every file a run writes.

# %%
card = (folder / "full" / "README.md").read_text(encoding="utf-8")
print(card.split("---")[1])

# %%
from sftkit.report.redact import redact

token = "hf_" + "aB3dE5" * 6  # looks like a token of the hub
print(redact(f"Ask ada@example.org, who has {token}."))

# %% [markdown]
# `sftkit export RUN --to hub --repo OWNER/NAME --dry-run` says what would be sent; without `--dry-run` it sends it, and needs your token.
#
# ## 8 · Ask it yourself
#
# One model in memory; its adapter is off for each token of the base and on for each token of the tuned model. With widgets you get a box to
# ask in. `sftkit chat RUN` does the same in a terminal.

# %%
from sftkit.talk import TalkWidget, open_talk

talk = open_talk(folder / "full", max_new_tokens=24)
for question in ("Who founded Dunnowick?", "What is the capital of France?"):
    answers = talk.answer(question)
    print(question)
    for speaker, answer in answers.items():
        print(f"  {speaker:<6} {answer}")

# %%
talk.begin_anew()
try:
    box = TalkWidget(talk)
except ImportError:
    box = "Install ipywidgets to get a box to ask in."
box

# %% [markdown]
# ## Summary
#
# - A report is read for what is ruled out. Little data rules out little, and the report says so.
# - Name all differences before you explain one.
# - The same recipe gives the same bytes on the same machine; elsewhere ask what differs.
# - What is served is not what was tested until both were shown the same words.
# - Look at licences and secrets before sharing, not after.

# %%
from sftkit.exercises import progress
from sftkit.progress import peak_memory_bytes

minutes = (time.perf_counter() - clock) / 60
print(f"{minutes:.1f} minutes, peak memory {peak_memory_bytes() / 1e9:.2f} GB; seed 0")
progress("09")
