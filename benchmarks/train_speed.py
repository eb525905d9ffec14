"""Training speed and memory: sftkit beside TRL's SFTTrainer and plain peft + transformers.Trainer.

Every leg trains the same model with the same adapter on the same rows, in a fresh process of its
own, on the CPU. Legs take turns, so a machine that slows down slows all of them.

    python benchmarks/train_speed.py --rounds 3 --steps 10 --save cpu-2-cores
    python benchmarks/train_speed.py --check-loss
    python benchmarks/train_speed.py --profile
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

from sftkit.records import IGNORE, Encoded
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

LEGS = {
    "trl": "TRL SFTTrainer, defaults, bf16=False: fp32, gradient checkpointing, sdpa",
    "trl-autocast": "TRL SFTTrainer, all defaults: fp32 under bf16 autocast, checkpointing, sdpa",
    "trl-best": "TRL SFTTrainer, bf16 weights, bf16 autocast, no checkpointing, eager attention",
    "trainer": "peft + transformers.Trainer, defaults: fp32, sdpa",
    "sftkit": "sftkit, defaults: dtype auto",
    "sftkit-plain": "sftkit, dtype auto, speed off",
    "sftkit-lean": "sftkit, dtype auto, two micro-batches a step",
    "sftkit-checkpointed": "sftkit, dtype auto, activations computed twice",
    "sftkit-fp32": "sftkit, dtype float32",
}
BASELINE = "trl"
HELDOUT_ROWS = 24
LEARNING_RATE = 1e-3
LARGEST_LOSS_GAP = 1e-4
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every leg of a run has in common.

    Attributes:
        steps: Optimizer steps; the first one warms up and is not timed.
        rows_per_step: Rows a step holds on average.
        batches: same hands sftkit's batches to every leg; own lets the other tools shuffle and
            cut the same rows themselves.
        data: Catalog name of the rows.
        r: Rank of the adapter; lora_alpha is 2 r.
        attention: Attention of the sftkit legs; the others keep what their description says.
        seed: Seed of rows, batches and adapter weights.
    """

    steps: int = 10
    rows_per_step: int = 8
    batches: str = "same"
    data: str = "cwe"
    r: int = 8
    attention: str = "auto"
    seed: int = 0


@dataclass(kw_only=True)
class Measured:
    """One leg, once. Times and tokens leave out the first step; padding never counts.

    The held-out loss is that of the adapter on the base in float32, whatever it was trained in.

    Attributes:
        tokens: Tokens of the rows trained on.
        computed_tokens: Tokens that went through the model: with padding, and a beginning that is
            shared by the rows of a batch once.
        flop: Products of these tokens with the frozen weights, forward and back, and with the
            output head at supervised positions only.
    """

    leg: str
    tokens: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    heldout_loss: float
    losses: list[float]
    dtype: str
    computed_tokens: int
    flop: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained on per second of wall time."""
        return self.tokens / self.seconds


@dataclass
class Stopwatch:
    """Wall and CPU time at the end of every step, and the tokens of every batch made.

    `computed` counts what went through the input embeddings in training, up to each step's end.
    """

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    seen: int = 0

    def watch(self, model: Any) -> None:
        """Count the tokens that a model embeds while it is in training mode."""
        embedding = model.get_input_embeddings()

        def count(module: Any, given: tuple[Any, ...]) -> None:
            self.seen += given[0].numel() if module.training else 0

        embedding.register_forward_pre_hook(count)

    def step_done(self) -> None:
        """Note the end of a step."""
        self.walls.append(time.perf_counter())
        self.cpus.append(time.process_time())
        self.computed.append(self.seen)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Encoded rows and the batches sftkit makes of them."""

    train: Sequence[Encoded]
    heldout: Sequence[Encoded]
    batches: list[list[int]]
    settings: TrainSettings
    model_path: str


def prepare(job: Job) -> Rows:
    """Choose rows by the seed, and the smallest token budget that gives the job's steps."""
    from sftkit.catalog import dataset_rows, fetch_model
    from sftkit.chat import encode_rows
    from sftkit.model import load_tokenizer
    from sftkit.train import plan_steps

    source = fetch_model(ModelSettings())
    rows = dataset_rows(job.data)
    if job.data == "cwe":
        rows = [row for row in rows if row["aspect"] == "description"]
    random.Random(job.seed).shuffle(rows)
    count = job.steps * job.rows_per_step
    tokenizer = load_tokenizer(ModelSettings(), source=source)
    encoded = encode_rows(rows[: count + HELDOUT_ROWS], tokenizer, max_tokens=512).examples
    train, heldout = encoded[HELDOUT_ROWS:], encoded[:HELDOUT_ROWS]
    lengths = [len(example.input_ids) for example in train]
    for budget in itertools.count(max(lengths)):
        settings = TrainSettings(
            learning_rate=LEARNING_RATE,
            max_tokens_per_batch=budget,
            schedule="constant",
            warmup_fraction=0.0,
            seed=job.seed,
        )
        batches = plan_steps(lengths, settings)
        if len(batches) <= job.steps:
            break
    return Rows(
        train=train, heldout=heldout, batches=batches, settings=settings, model_path=source.path
    )


def run_leg(leg: str, job: Job) -> Measured:
    """Train once, in this process."""
    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.progress import peak_memory_bytes

    rows = prepare(job)
    watch = Stopwatch()
    with_sftkit = leg.startswith("sftkit")
    model, losses = (train_sftkit if with_sftkit else train_trainer)(leg, job, rows, watch)
    peak = peak_memory_bytes()  # before the held-out rows, which are no part of training
    base = model.get_base_model()
    dtype = str(base.dtype).removeprefix("torch.")
    head = base.get_output_embeddings().weight.numel()
    body = sum(
        weight.numel()
        for name, weight in base.model.layers.named_parameters()
        if weight.ndim == 2 and "lora_" not in name
    )
    computed = watch.computed[-1] - watch.computed[0]
    answers = sum(rows.train[row].weight for batch in rows.batches[1:] for row in batch)
    return Measured(
        leg=leg,
        tokens=sum(watch.tokens[1 : len(watch.walls)]),
        seconds=watch.walls[-1] - watch.walls[0],
        cpu_seconds=watch.cpus[-1] - watch.cpus[0],
        peak_bytes=peak,
        heldout_loss=mean_loss(score_examples(model.float(), rows.heldout)),
        losses=losses,
        dtype=dtype,
        computed_tokens=computed,
        flop=4.0 * (body * computed + head * answers),
    )


def train_sftkit(leg: str, job: Job, rows: Rows, watch: Stopwatch) -> tuple[Any, list[float]]:
    """Train with sftkit's own functions."""
    from sftkit import adapter, model, objectives, train

    settings = ModelSettings(
        device="cpu",
        dtype="float32" if leg == "sftkit-fp32" else "auto",
        attention=job.attention,  # type: ignore[arg-type]
    )
    base = model.load_model(settings)
    watch.watch(base)
    lora = AdapterSettings(r=job.r, lora_alpha=2 * job.r)
    tuned = adapter.attach_adapter(base, lora, seed=job.seed)
    watch.tokens = [sum(len(rows.train[row].input_ids) for row in b) for b in rows.batches]
    record = train.train(
        tuned,
        rows.train,
        dataclasses.replace(
            rows.settings,
            micro_batches=2 if leg == "sftkit-lean" else 1,
            activation_checkpointing=leg == "sftkit-checkpointed",
            speed="off" if leg == "sftkit-plain" else "auto",
        ),
        objective=objectives.chat_loss,
        on_step=lambda step, total: watch.step_done(),
    )
    return tuned, [step.loss for step in record.steps]


def train_trainer(leg: str, job: Job, rows: Rows, watch: Stopwatch) -> tuple[Any, list[float]]:
    """Train with TRL's SFTTrainer or transformers.Trainer.

    Learning rate, schedule and seed are the job's; what else is set is in the leg's description.
    """
    import datasets
    import torch
    import transformers
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class StepTimes(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step_done()

    best = leg == "trl-best"
    base = AutoModelForCausalLM.from_pretrained(
        rows.model_path,
        dtype=torch.bfloat16 if best else torch.float32,
        attn_implementation="eager" if best else "sdpa",
    )
    watch.watch(base)
    tokenizer = AutoTokenizer.from_pretrained(rows.model_path)
    data = datasets.Dataset.from_list(
        [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows.train]
    )
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "per_device_train_batch_size": job.rows_per_step,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": job.seed,
    }
    common = {
        "model": add_lora(base, job),
        "train_dataset": data,
        "processing_class": tokenizer,
        "callbacks": [StepTimes()],
    }
    trainer: Any
    if leg == "trainer":
        trainer = transformers.Trainer(
            args=transformers.TrainingArguments(**options),
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            **common,
        )
    else:
        import trl

        extra: dict[str, dict[str, Any]] = {
            "trl": {"bf16": False},
            "trl-autocast": {},
            "trl-best": {"gradient_checkpointing": False},
        }
        trainer = trl.SFTTrainer(args=trl.SFTConfig(**options, **extra[leg]), **common)
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> Any:
        watch.tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    if job.batches == "same":
        loader = DataLoader(trainer.train_dataset, batch_sampler=rows.batches, collate_fn=counted)
        trainer.get_train_dataloader = lambda: loader
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model, losses


def add_lora(base: Any, job: Job) -> Any:
    """Attach the adapter with peft alone; the seed gives the weights that sftkit starts from."""
    import peft
    import torch

    torch.manual_seed(job.seed)
    config = peft.LoraConfig(
        r=job.r, lora_alpha=2 * job.r, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(base, config)


def check_loss(job: Job) -> float:
    """Train sftkit and a plain loop in fp32; return the largest gap between their step losses."""
    rows = prepare(job)
    _, ours = train_sftkit("sftkit-fp32", job, rows, Stopwatch())
    plain = plain_losses(job, rows)
    gaps = [abs(one - other) for one, other in zip(ours, plain, strict=True)]
    for number, (one, other) in enumerate(zip(ours, plain, strict=True), start=1):
        print(f"step {number:2d}: sftkit {one:.6f}, plain {other:.6f}, gap {gaps[number - 1]:.1e}")
    return max(gaps)


def plain_losses(job: Job, rows: Rows) -> list[float]:
    """Train as a textbook does: all logits, one batch per step, AdamW, nothing of sftkit."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(rows.model_path, dtype=torch.float32)
    model = add_lora(base, job).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for batch in rows.batches:
        ids = [torch.tensor(rows.train[row].input_ids) for row in batch]
        inputs = pad_sequence(ids, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        labels = pad_sequence(
            [torch.tensor(rows.train[row].labels) for row in batch],
            batch_first=True,
            padding_value=IGNORE,
        )
        logits = model(input_ids=inputs, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def profile(leg: str, job: Job, *, at_most: int = 15) -> str:
    """Say where the time of a leg's steps goes: the operators that take most of it themselves."""
    import torch

    rows = prepare(job)
    watch = Stopwatch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train_sftkit(leg, job, rows, watch)
    spent = sorted(
        ((row.self_cpu_time_total, row.count, row.key) for row in profiler.key_averages()),
        reverse=True,
    )
    whole = sum(time for time, _, _ in spent)
    lines = ["| operator | share of the time | calls per step |", "|---|---|---|"]
    lines += [
        f"| {name} | {time / whole:.1%} | {calls / job.steps:.0f} |"
        for time, calls, name in spent[:at_most]
    ]
    rest = sum(time for time, _, _ in spent[at_most:])
    return "\n".join([*lines, f"| everything else | {rest / whole:.1%} | |"])


def product_peak() -> float:
    """Time this machine's best bf16 matrix product, in FLOP/s; the best of a few shapes and tries.

    Runs in a process of its own, like the legs.
    """
    code = (
        "import time, torch\n"
        "best = 0.0\n"
        "for rows, inner, columns in ((1024, 1024, 1024), (2048, 576, 1536), (512, 2048, 2048)):\n"
        "    a = torch.randn(rows, inner).bfloat16(); b = torch.randn(inner, columns).bfloat16()\n"
        "    for _ in range(20):\n"
        "        start = time.perf_counter(); a @ b\n"
        "        spent = time.perf_counter() - start\n"
        "        best = max(best, 2.0 * rows * inner * columns / spent)\n"
        "print(best)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def run_apart(leg: str, job: Job) -> Measured:
    """Run a leg in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--leg", leg, "--job", json.dumps(dataclasses.asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Leg {leg} failed:\n{done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def summarise(runs: Sequence[Measured], peak: float) -> list[dict[str, Any]]:
    """Reduce the rounds to one entry per leg: medians, and ratios paired within each round.

    Args:
        runs: Every leg of every round.
        peak: FLOP/s of the machine's best product in bf16.
    """
    by_leg: dict[str, list[Measured]] = {}
    for run in runs:
        by_leg.setdefault(run.leg, []).append(run)
    base = by_leg.get(BASELINE)

    def against(mine: list[Measured], value: Callable[[Measured], float]) -> float | None:
        if not base:
            return None
        return statistics.median(
            value(one) / value(other) for one, other in zip(mine, base, strict=True)
        )

    return [
        {
            "leg": leg,
            "what": LEGS[leg],
            "dtype": "/".join(sorted({run.dtype for run in mine})),
            "tokens_per_s": statistics.median(run.tokens_per_s for run in mine),
            "tokens_per_cpu_s": statistics.median(run.tokens / run.cpu_seconds for run in mine),
            "peak_bytes": statistics.median(run.peak_bytes for run in mine),
            "speed_ratio": against(mine, lambda run: run.tokens_per_s),
            "memory_ratio": against(mine, lambda run: run.peak_bytes),
            "peak_share": statistics.median(run.flop / run.seconds / peak for run in mine),
            "computed_share": statistics.median(run.computed_tokens / run.tokens for run in mine),
            "first_loss": mine[-1].losses[0],
            "last_loss": mine[-1].losses[-1],
            "heldout_loss": mine[-1].heldout_loss,
            "runs": [dataclasses.asdict(run) for run in mine],
        }
        for leg, mine in by_leg.items()
    ]


def as_table(report: dict[str, Any]) -> str:
    """Lay the summary out as Markdown."""

    def times(ratio: float | None) -> str:
        return f"{ratio:.2f}×" if ratio is not None else "–"

    lines = [
        "| leg | tokens/s | speed | peak memory | memory | tokens/CPU-s | last loss | held-out "
        "| computed tokens | of the bf16 peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {leg['leg']} ({leg['dtype']}) | {leg['tokens_per_s']:.0f} "
        f"| {times(leg['speed_ratio'])} | {leg['peak_bytes'] / 1e9:.2f} GB "
        f"| {times(leg['memory_ratio'])} | {leg['tokens_per_cpu_s']:.0f} "
        f"| {leg['last_loss']:.4f} | {leg['heldout_loss']:.4f} "
        f"| {leg['computed_share']:.2f}× | {leg['peak_share']:.2f} |"
        for leg in report["legs"]
    )
    lines += ["", f"best bf16 product: {report['product_peak'] / 1e9:.0f} GFLOP/s"]
    lines += [*(f"{leg['leg']}: {leg['what']}" for leg in report["legs"])]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    default = Job()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times every leg is run")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rows-per-step", type=int, default=default.rows_per_step)
    parser.add_argument("--legs", default=",".join(LEGS), help="comma-separated, from: %(default)s")
    parser.add_argument("--batches", choices=("same", "own"), default=default.batches)
    parser.add_argument("--data", choices=("cwe", "shop"), default=default.data)
    parser.add_argument("--r", type=int, default=default.r, help="LoRA rank")
    parser.add_argument("--attention", choices=("auto", "eager", "sdpa"), default="auto")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--check-loss", action="store_true", help="fp32 against a plain loop")
    parser.add_argument("--profile", action="store_true", help="where sftkit's time goes")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--leg", choices=LEGS, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.legs.split(",")) - set(LEGS)
    if unknown:
        parser.error(f"unknown legs {sorted(unknown)}; there are {', '.join(LEGS)}")
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first step is not timed")
    return options


def main() -> int:
    """Run the benchmark, or one leg of it for the parent process."""
    options = parse()
    if options.leg:
        measured = run_leg(options.leg, Job(**json.loads(options.job)))
        print(json.dumps(dataclasses.asdict(measured)))
        return 0
    job = Job(**{part.name: getattr(options, part.name) for part in dataclasses.fields(Job)})
    if options.check_loss:
        gap = check_loss(job)
        print(f"largest gap over {job.steps} steps: {gap:.2e} (allowed {LARGEST_LOSS_GAP:.0e})")
        return 0 if gap <= LARGEST_LOSS_GAP else 1
    if options.profile:
        print(profile("sftkit", job))
        return 0
    load_before = note_load()
    peak = product_peak()
    runs = []
    for turn in range(1, options.rounds + 1):
        for leg in options.legs.split(","):
            runs.append(run_apart(leg, job))
            print(f"round {turn}, {leg}: {runs[-1].tokens_per_s:.0f} tokens/s", file=sys.stderr)
    report = {
        **describe(PACKAGES, load_before),
        "job": dataclasses.asdict(job),
        "rounds": options.rounds,
        "product_peak": peak,
        "legs": summarise(runs, peak),
    }
    if options.save:
        save(report, options.save)
    print(json.dumps(report, indent=1) if options.format == "json" else as_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
