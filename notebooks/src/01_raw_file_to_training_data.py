# ---
# jupyter:
#   sftkit:
#     short:
#       train_steps: 1
#       tested_rows: 6
#       out: runs/short/raw-file
# ---

# %% [markdown]
# # 01 · From a raw file to training data
#
# Most fine-tunes that go wrong were wrong before the first training step: in the data, and silently. You get a file as
# files are, with faults in it, and turn it into data that you can train on and, harder, trust a score from.
#
# Afterwards you will be able to
#
# - say what is wrong with a file, where, and what to do about it, before a model sees it;
# - clean it so that every dropped or changed row has a reason, and nothing is lost unseen;
# - divide it so that a test measures something new, and prove that it does;
# - show which tokens a model will learn from;
# - say by how much a leak makes a score look better than it is, because you have measured it.
#
# | Machine | Minutes | Memory | Measured on |
# |---|---|---|---|
# | 2 CPU cores, no GPU | 1.4 when the cores were free; 2.1 when shared | 2.6 GB | 2026-11-22 |
# | Colab T4 | not run yet | not run yet | |
# | NVIDIA A100 | not run yet | not run yet | |
# | Apple laptop | not run yet | not run yet | |
#
# Downloads come on top, once: model and probes come from the Python package index, so you need no account. The broken
# files are part of this kit; each fault in them was put there on purpose.

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
    subprocess.run([*pip, f"sftkit-notebooks[labels] @ git+{REPO_URL}"], check=True)

import sftkit

print(f"sftkit {sftkit.__version__}, Python {platform.python_version()}, {platform.system()}")

# %% [markdown]
# All you may want to change stands here.

# %% tags=["parameters"]
model_name = "smollm2-135m"  # whose tokens are counted, and which is trained in section 7
max_tokens = 128  # longest example in tokens
train_steps = 20  # optimizer steps of each of the two trainings
tested_rows = None  # test questions that are scored; None takes all
seed = 0  # of the division and of the trainings
out = "runs/raw-file"  # what is written goes into a new folder in here

# %% [markdown]
# ## 1 · Look at the file first
#
# Two exports from Dunnowick, the invented lamp and map shop that you know from notebook 00: conversations with customers,
# and a spreadsheet of questions. Before any tool, look with your own eyes. Each of these four lines has a fault. Which?

# %%
from sftkit.catalog import bundled_folder

folder = bundled_folder() / "shop" / "broken"
chats, export = folder / "shop-chat.jsonl", folder / "shop-export.csv"
lines = chats.read_text(encoding="utf-8").splitlines()
print(f"{chats.name}: {len(lines)} lines\n")
for number in (10, 15, 33, 68):
    print(f"line {number}: {lines[number - 1]}\n")

# %% [markdown]
# A narrator who is neither user nor assistant; a reply that is empty; a control token inside a sentence; and letters
# that were once an é. In four lines you can see that. In a hundred thousand you cannot, and a training loop does not
# complain about any of the four: it trains.
#
# The second file does not even open. Computers store letters as bytes, and there are several tables for how.

# %%
print(export.read_bytes()[:60], "\n")
try:
    export.read_text(encoding="utf-8")
except UnicodeDecodeError as error:
    print(f"Python says: {error}")

# %% [markdown]
# Python tells a byte and a position. What you want to know is which lines, and what to do:

# %%
from sftkit import audit_file

audit_file(export)

# %% [markdown]
# The audit reads on where others stop, so it can name all affected lines, and it recognises the table: cp1252, which
# Windows programs write. So tell it. One error is left then, and that one you will mend yourself.

# %%
import time
from pathlib import Path

work = Path(out) / time.strftime("%Y-%m-%d-%H%M%S")  # a new folder: nothing is overwritten
work.mkdir(parents=True)
export_lines = export.read_text(encoding="cp1252").splitlines()


def audit_with(line):
    """Audit a copy of the export in which the fourth line is replaced."""
    copy = work / "export-mended.csv"
    mended_lines = [*export_lines[:3], line, *export_lines[4:]]
    copy.write_text("\n".join(mended_lines) + "\n", encoding="utf-8")
    return audit_file(copy)


for error in audit_with(export_lines[3]).errors:
    print(f"{error.code} at {error.where[0]}: {error.message}")
print(f"The line: {export_lines[3]}")

# %% [markdown]
# ### Exercise 01.1
#
# How should this line be written? Hand in the line, and how many errors `audit_with(mended)` then finds.

# %% tags=["exercise"]
from sftkit import check

### BEGIN SOLUTION
_question, _, _answer = export_lines[3].partition(";")
mended = f'{_question};"{_answer}"'
errors_left = len(audit_with(mended).errors)
### END SOLUTION
check("01.1", (mended, errors_left), line=export_lines[3])

# %% [markdown]
# ## 2 · The audit
#
# Now the conversations. One pass over the file looks for 38 kinds of fault. Each finding says *what* is wrong, *where*,
# in how many rows, and *what to do*. An **error** makes training or its score wrong; a **warning** should be looked
# at; **information** says what was understood.

# %%
audit_file(chats)

# %% [markdown]
# Three of them, read together:
#
# - **D23, empty reply**, lines 15 and 66. The model would learn that the right answer is to end the turn at once, and no
#   loss curve shows it. What to do: write the reply, or delete the row. Only the shop knows what the reply was.
# - **D31, a control token in the text**, lines 33 and 78. `<|im_start|>` and `<|im_end|>` are how chat models mark where
#   a turn begins and ends. Inside a sentence they are read as such marks: the model learns to stop in mid-sentence, or
#   takes for a new turn what a customer typed. What to do: remove them.
# - **D34, test rows in train**, lines 28 and 71. Whoever is tested on what he was trained on is tested for memory. What
#   to do: one of the two has to go. Section 7 measures how much such a score is worth.
#
# Some faults exist only for a particular model: its control tokens, its limit of length, its chat template. So the audit
# can be given the model's tokenizer. What does it see in addition?

# %%
from sftkit import fetch_model, load_tokenizer
from sftkit.settings import ModelSettings

model = ModelSettings(name=model_name)
source = fetch_model(model)
tokenizer = load_tokenizer(model, source=source)
audit = audit_file(chats, tokenizer=tokenizer, max_tokens=max_tokens, system="")
known = {(finding.code, finding.severity) for finding in audit_file(chats).findings}
for finding in audit.findings:
    if (finding.code, finding.severity) not in known:
        print(f"{finding.code} ({finding.severity}): {finding.message}.\n  → {finding.fix}\n")

# %% [markdown]
# `D31` was a warning, because *some* model uses that token; now it is an error, because this one does. And one row is
# far longer than we train on. Programs that cut long rows would cut away its whole answer and train on nothing, without
# a word. Here such rows are refused and named.
#
# ## 3 · Understand what you have
#
# Faults are one thing; what the data are *like* is another. How long are the rows?

# %%
from sftkit import plots_data

plots_data.plot_lengths(audit.facts)

# %% [markdown]
# One row takes the figure for itself: somebody pasted the post of a whole week. This is what real lengths look like,
# mostly short and a few enormous, and why one looks before choosing a limit.
#
# How much of it is there twice?

# %%
plots_data.plot_repeats(audit.facts)

# %% [markdown]
# Near duplicates share at least four fifths of their word sequences. Copies are not only waste. A row that is there three
# times weighs three times, and a copy that ends up on the other side of a split is a leak.
#
# The third thing to know is the balance of labels. Conversations have none, so look at another file of the shop, letters
# that are sorted by topic:

# %%
tickets_audit = audit_file("shop-tickets")
plots_data.plot_labels(tickets_audit.facts)

# %% [markdown]
# A model that always says "delivery" would be right in more than one of five letters, and would never find a letter for
# the library. Section 8 comes back to this.
#
# ## 4 · Clean
#
# Three rules make cleaning safe: the input is never touched; every row that is dropped or changed is logged with its
# reason; and doing it twice does no more than doing it once. All three can be checked.
#
# Masking personal data is off unless you ask for it, because it changes what is learned. Customers wrote mail addresses
# and telephone numbers here that no model should repeat, so we ask.

# %%
import hashlib

import datasets
from sftkit import read_dataset
from sftkit.dataset.clean import CleanSettings, clean_dataset

datasets.disable_progress_bars()
hash_before = hashlib.sha256(chats.read_bytes()).hexdigest()
raw = read_dataset(chats)
cleaning = CleanSettings(personal=("email", "phone"))
cleaned = clean_dataset(raw, cleaning, tokenizer=tokenizer)
print(cleaned)

# %% [markdown]
# The log, row by row. Read the reasons. Would you have decided otherwise somewhere?

# %%
from dataclasses import asdict

import pandas as pd

log = pd.DataFrame([asdict(step) for step in cleaned.log])
log["line"] = log["place"].str.rpartition(":")[2].astype(int)
shown = log[["line", "action", "reason", "detail", "before", "after"]]
left = [{"selector": "th, td", "props": "text-align: left !important; vertical-align: top"}]
shown.style.hide().set_table_styles(left)

# %% [markdown]
# Where personal data was masked, before and after stay empty: a log must not hold what the data no longer does. The
# broken letters were no finding of the audit, since a file full of "cafÃ©" can be trained on without any error. Only
# its readers would notice.
#
# **Check.** The input is as it was, and the result lies in a folder of its own.

# %%
cleaned.write(work / "cleaned")
assert hashlib.sha256(chats.read_bytes()).hexdigest() == hash_before, "the input was changed"
for path in sorted((work / "cleaned").iterdir()):
    print(f"{path.stat().st_size:>7,} bytes  {path.name}")

# %% [markdown]
# Is it clean now? Ask the audit again.

# %%
from sftkit import audit_dataset

second = audit_dataset(cleaned.dataset, tokenizer, max_tokens=max_tokens, system="")
for error in second.errors:
    print(f"{error.code} at {', '.join(error.where)}: {error.message}\n")

# %% [markdown]
# Two errors are left, and rightly: cleaning mends what has one right answer, and these two need a decision.
#
# - The narrator: was it a customer, an instruction, a stage direction? We do not know, so the row is left out.
# - The leak: the file came with a split of its own, and it leaks. We drop the column `split` and divide anew below.

# %%
from sftkit.dataset.audit import drop_faulty

undivided = cleaned.dataset.remove_columns("split")
third = audit_dataset(undivided, tokenizer, max_tokens=max_tokens, system="")
dataset, left_out = drop_faulty(undivided, third)
print(f"left out: {[(undivided[one.row]['place'], one.reason) for one in left_out]}")

last = audit_dataset(dataset, tokenizer, max_tokens=max_tokens, system="")
again = clean_dataset(dataset, cleaning, tokenizer=tokenizer)
print(f"{last.row_count} rows, errors: {len(last.errors)}; cleaning again: {again}")
assert not last.errors, "there are errors left"
assert not again.log, "cleaning twice changed something"

# %% [markdown]
# ### Exercise 01.2
#
# No errors does not mean no faults. Two customers asked the same thing and were told different things; finding `D37`
# says where questions come twice. Find a pair of rows whose replies cannot both be true. Hand in their line numbers.

# %%
replies = {}
for row in raw:
    said = {turn["role"]: turn["content"] for turn in row["messages"]}
    place = int(row["place"].rpartition(":")[2])
    replies.setdefault(said.get("user"), []).append((place, said.get("assistant")))
twice = {question: given for question, given in replies.items() if len(given) > 1}
for question, given in twice.items():
    print(question, *(f"  line {place}: {reply}" for place, reply in given), sep="\n")

# %% tags=["exercise"]
### BEGIN SOLUTION
pair = (18, 41)
### END SOLUTION
check("01.2", pair, dataset=raw)

# %% [markdown]
# ## 5 · Divide
#
# Train, validation, test: you know them from notebook 00. What decides whether a test is worth anything is *what stays
# together*. Here rows that ask the same question form a group, and a group is never divided.
#
# Which split a group goes to depends on nothing but the seed and its content. No list is shuffled. Compare: divide the
# first 70 rows, then append the others and divide again. How many of the 70 change sides?

# %%
from sftkit.dataset.split import mark_splits, split_dataset
from sftkit.settings import DataSettings

dividing = DataSettings(source=str(chats), test_fraction=0.3, max_tokens=max_tokens, seed=seed)
first = dataset.select(range(70))
before = mark_splits(first, dividing)["split"]
after = mark_splits(dataset, dividing)["split"][:70]
moved = sum(one != other for one, other in zip(before, after, strict=True))
print(f"by content: {moved} of 70 rows changed sides when {len(dataset) - 70} were appended")

tests = [set(d.train_test_split(0.3, seed=seed)["test"]["id"]) for d in (first, dataset)]
moved = sum((name in tests[0]) != (name in tests[1]) for name in first["id"])
print(f"shuffled:   {moved} of 70")

# %% [markdown]
# With shuffling, every new row redistributes the old ones: what was tested last month is trained on this month, and no
# two scores can be compared.
#
# Now the division itself, and the check that belongs to it. Contamination is looked for in three ways, from strict to
# loose: the same question, thirteen words in a row, nearly the same words. The probes, with which forgetting is
# measured later, must not be trained on either.

# %%
from sftkit import probe_items
from sftkit.dataset.contamination import compare_splits, find_overlap

splits = split_dataset(dataset, dividing)
print(splits.counts())
parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
probe = [item.question for item in probe_items("piqa")]
for overlap in compare_splits(parts, {"piqa": probe}):
    print(f"- {overlap}")

# %% [markdown]
# And the division that came with the file?

# %%
theirs = split_dataset(raw, DataSettings(source=str(chats), split_by="split"))
print(find_overlap(theirs.train, theirs.test))

# %% [markdown]
# ### Exercise 01.3
#
# Word for word is only the crudest leak. The shop's facts of notebook 00 are asked in several phrasings each. If we want
# to know how a model does on facts that it was *not* told, no fact may stand on both sides, in whatever words. Try
# columns to group by. The first number counts the facts in both train and test, the second the groups.

# %%
divided = {}
for column in ("id", "kind", "fact"):
    facts = read_dataset("shop", group_by=column).remove_columns("split")
    pieces = split_dataset(facts, DataSettings(source="shop", group_by=column, seed=seed))
    shared = set(pieces.train["fact"]) & set(pieces.test["fact"])
    divided[column] = len(shared), sum(pieces.group_counts().values())
divided

# %% tags=["exercise"]
### BEGIN SOLUTION
group_by = "fact"
### END SOLUTION
check("01.3", group_by, divided=divided)

# %% [markdown]
# Notebook 00 put the same facts on both sides on purpose, because it asked a different question: does the model know
# what it *was* told? There is no split that is right for every question.
#
# ## 6 · See what will be learned
#
# A conversation becomes one row of text by the model's *chat template*. What does it add that nobody said?

# %%
from sftkit.show import show_template

conversation = splits.train[0]["messages"]
show_template(conversation, tokenizer)

# %% [markdown]
# A system prompt that nobody wrote, in every single row. It costs tokens, and the model learns to answer as the shop
# only when that sentence stands before. An empty system prompt of our own takes its place:

# %%
show_template(conversation, tokenizer, system="")

# %% [markdown]
# Now encode: text to tokens, and for each token whether it is learned from. Before you run the cell: which tokens should
# be coloured?

# %%
from sftkit import show_mask
from sftkit.encoding import encode_dataset

encoded = encode_dataset(splits.train, tokenizer, max_tokens=max_tokens, system="")
show_mask(encoded[0], tokenizer)

# %% [markdown]
# The answer and its end, nothing else. **Check** that it is so in all rows, and see who was refused:

# %%
table = encode_dataset(dataset, tokenizer, max_tokens=max_tokens, system="")
summary = table.summary()
print(f"{summary.rows} rows, {summary.tokens:,} tokens; learned from: {summary.supervised:,}")
print(f"that is {summary.supervised / summary.tokens:.0%}; the rest is context")
for refused in table.refused:
    print(f"refused: {dataset[refused.row]['place']}: {refused.reason}")
assert summary.rows_without_supervision == 0, "some rows teach nothing"
assert summary.end_of_turn_supervised == summary.rows, "some answers lost the end of their turn"

# %% [markdown]
# ### Exercise 01.4
#
# Two questions and their answers are joined into one conversation of four turns. `pieces` says how many tokens the words
# of each turn have. How many tokens of the whole will be learned from? Say it before you look at the mask.

# %%
from sftkit import encode_chat

long_conversation = [*splits.train[0]["messages"], *splits.train[1]["messages"]]
pieces = [
    (turn["role"], len(tokenizer(turn["content"])["input_ids"])) for turn in long_conversation
]
joined = encode_chat(long_conversation, tokenizer, max_tokens=2 * max_tokens, system="")
pieces

# %% tags=["exercise"]
### BEGIN SOLUTION
supervised = sum(tokens + 1 for role, tokens in pieces if role == "assistant")
### END SOLUTION
check("01.4", supervised, example=joined)

# %% [markdown]
# ## 7 · What a leak does to a score
#
# Everybody says that test questions in the training data spoil the score. By how much, and which score? Do not believe
# it, measure it. The experiment:
#
# - **clean**: train on our training rows.
# - **leaky**: the same, but some rows are replaced by *every second test question*, with its answer. As many rows, as
#   many steps, the same seed.
# - Both models then get the same test: the loss on the right answer of each test question, less is better.

# %%
test = splits.test if tested_rows is None else splits.test.select(range(tested_rows))
leaked = test.select(range(0, len(test), 2))
kept = splits.train.select(range(len(leaked), len(splits.train)))
leaky_train = datasets.concatenate_datasets([leaked, kept])
overlap = find_overlap(leaky_train, test)
print(f"clean: {len(splits.train)} rows. {find_overlap(splits.train, test)}\n")
print(f"leaky: {len(leaky_train)} rows. {overlap}")

# %% [markdown]
# One function for both, so that nothing else can differ: a fresh adapter on the same base model, trained and tested.

# %%
from sftkit import AdapterSettings, attach_adapter, chat_loss, load_model, pick_dtype
from sftkit.evidence.perplexity import score_examples
from sftkit.settings import TrainSettings
from sftkit.train import train

asked = encode_dataset(test, tokenizer, max_tokens=max_tokens, system="")
base = load_model(model, dtype=pick_dtype(model).dtype, source=source)
base_losses = [score.mean for score in score_examples(base, asked)]


def train_and_test(rows):
    """Train a fresh adapter on rows; give the loss of each test answer, nats per token."""
    fresh = load_model(model, dtype=base.dtype, source=source)
    tuned = attach_adapter(fresh, AdapterSettings(), seed=seed)
    examples = encode_dataset(rows, tokenizer, max_tokens=max_tokens, system="")
    settings = TrainSettings(epochs=train_steps, max_steps=train_steps, seed=seed)
    done = train(tuned, examples, settings, objective=chat_loss)
    print(f"{len(done.steps)} steps, {done.tokens:,} tokens, {done.seconds:.0f} s")
    return [score.mean for score in score_examples(tuned, asked)]


clean_losses = train_and_test(splits.train)
leaky_losses = train_and_test(leaky_train)

# %% [markdown]
# First what a report would show: one number per model, over the whole test.

# %%
from statistics import mean

scores = {"base": base_losses, "clean": clean_losses, "leaky": leaky_losses}
print(f"{model_name}, {base.device}, {base.dtype}, seed {seed}, {time.strftime('%Y-%m-%d')}")
print(f"mean loss of the answers to {len(asked)} test questions, nats per token:")
for name, losses in scores.items():
    print(f"{name:<6} {mean(losses):.2f}")

# %% [markdown]
# By these numbers you would ship the leaky model. Now question by question: by how much did the leak move each loss?

# %%
from sftkit.evidence.leak import measure_leak

groups = [example.group for example in asked]
effect = measure_leak(clean_losses, leaky_losses, overlap, groups=groups)
plots_data.plot_leak(effect)

# %% [markdown]
# The same in numbers, with 95 % intervals; and last the scores that are left when only rows count that did not leak.

# %%
for name in ("overall", "on_leaked", "on_clean"):
    change = getattr(effect, name)
    low, high = change.ci95
    print(f"{name:<10} {change.delta:+.2f} ({low:+.2f} to {high:+.2f}), {change.items} questions")

honest = {name: round(overlap.clean_mean(losses), 2) for name, losses in scores.items()}
print(f"scores on the rows that did not leak: {honest}")

# %% [markdown]
# The whole gain comes from the questions that the model had seen. On the others, where both models are asked something
# new, the leak is worth next to nothing: look at whether the interval holds zero. And your customers only ask the others:
# they do not take their questions from your test. So the leaky score is not a little too good, it answers another
# question: *how well was this text remembered?* Raise `train_steps` at the top, and see what becomes of the gap.
#
# Nothing in the training gave it away. Rows, steps and seed are the same; only the check for overlap saw it. The honest
# number of a leaky test is the one on the rows that did not leak, and it is what `clean_mean` gives. One caution: this
# was one training with one seed for each of the two.
#
# ## 8 · Labels, balance, noise
#
# Are the labels right? A part of the letters was sorted twice, by two annotators who did not see each other's labels
# (in this invented shop they are simulated). How often they agree says how much a label is worth. But two who guess
# also agree now and then, and the more often, the fewer topics there are. *Cohen's kappa* and *Krippendorff's alpha*
# leave that part out: 0 is chance, 1 is perfect.

# %%
from sftkit.dataset.labels import measure_agreement

tickets = read_dataset("shop-tickets")
agreement = measure_agreement(tickets, ("topic_a", "topic_b"))
print(agreement, "\n")
for place in agreement.disagreements[:3]:
    ticket = tickets[place]
    print(f"{ticket['topic_a']} or {ticket['topic_b']}? {ticket['text']}")

# %% [markdown]
# ### Exercise 01.5
#
# By the usual limits, alpha of 0.8 or more is *reliable*, from 0.667 on *tentative* conclusions are allowed, and below
# it is *unreliable*. Which word fits, and how many letters should a third person read?

# %% tags=["exercise"]
### BEGIN SOLUTION
word = "tentative"
letters = len(agreement.disagreements)
### END SOLUTION
check("01.5", (word, letters), agreement=agreement)

# %% [markdown]
# Balance: rare topics can be given more weight in the loss, so that each topic as a whole weighs the same. The division
# is *stratified* here: each topic has its share in each split, to within one row. Single letters are divided; a question
# about *new customers* would need to group by customer.

# %%
from sftkit.dataset.balance import inverse_weights

sorting = DataSettings(source="shop-tickets", stratify_by="label", group_by="id", seed=seed)
letters_split = split_dataset(read_dataset("shop-tickets", group_by="id"), sorting)
weights = inverse_weights(letters_split.train["label"])
rows = {
    name: pd.Series(part["label"]).value_counts()
    for name, part in (("train", letters_split.train), ("test", letters_split.test))
}
pd.DataFrame({**rows, "weight": pd.Series(weights).round(2)}).sort_values("weight")

# %% [markdown]
# Noise: customers mistype, so a share of the training letters gets a copy with typing errors, by the neighbours on a
# keyboard. Copies are marked. They belong into train and nowhere else: a test of made-up letters measures made-up
# letters, and a copy of a test letter in train would be a leak of our own making. So the marks are enforced:

# %%
from sftkit import SftkitError
from sftkit.catalog import confusion_tables
from sftkit.dataset.augment import add_noisy_rows, confuse_characters

neighbours = confusion_tables()["keyboard/en"]
keyboard = {key: [c for c in near if c.isalpha()] for key, near in neighbours.items()}
noisy = add_noisy_rows(
    letters_split.train,
    lambda text, seed: confuse_characters(text, keyboard, rate=0.04, seed=seed),
    method="typos",
    share=0.2,
)
print(f"{len(letters_split.train)} rows became {len(noisy)}\n{noisy[-1]['augmented']}:")
print(noisy[-1]["text"], "\n")
try:
    split_dataset(noisy, sorting)
except SftkitError as error:
    print(f"Dividing them again is refused: {error}")

# %% [markdown]
# ## Summary
#
# - Look, then audit, then clean, then divide, then encode; and after each step ask whether it did what you think.
# - Cleaning mends what has one right answer. What needs a decision is yours, and stays visible until you make it.
# - A test is worth what its split is worth. Group by what shall be new, and let content decide, not a shuffle.
# - A leak made the score better and the model no better. One check finds it; without it nothing does.
#
# The same from a command line, on your own file:
#
# ```
# sftkit audit my_questions.csv --model smollm2-135m
# sftkit audit my_questions.csv --format html > audit.html
# ```

# %%
from sftkit.exercises import progress

progress("01")
