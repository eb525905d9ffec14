"""Settings: frozen, keyword-only, checked where they are born.

A recipe is the whole description of a run. Every default of the kit lives here and nowhere else;
`recipe` reads and writes them as YAML.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sftkit.errors import SettingsError

Quantization = Literal["none", "int8", "nf4", "fp4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["cosine", "linear", "constant"]
Task = Literal["chat", "classify", "regress", "image"]
Loss = Literal["auto", "cross-entropy", "focal", "mse", "huber"]
LOSSES: Mapping[Task, tuple[Loss, ...]] = {
    "chat": ("cross-entropy",),
    "classify": ("cross-entropy", "focal"),
    "regress": ("mse", "huber"),
    "image": ("cross-entropy", "focal"),
}
"""Which losses fit a task; the first is what auto takes."""
TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
OptimizerName = Literal[
    "adamw", "adam", "sgd", "adafactor", "adamw-8bit", "adamw-paged", "adamw-paged-8bit",
]  # fmt: skip
RowFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt-completion", "question-answer",
    "text-label", "text-score", "image-label",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which base model, and how its weights are held.

    Attributes:
        name: A catalog name, a hub id, a folder, or a path that ends in .gguf.
        revision: Commit or tag of a hub model; None takes the default branch.
        quantization: none, int8 (LLM.int8), nf4 or fp4 (4 bit); bitsandbytes.
        double_quantization: Whether nf4 and fp4 also quantize their scales (0.4 bit per weight
            less; Dettmers et al. 2023, section 3).
        dtype: Type of the unquantized weights and of the compute. auto times one matrix
            product per type and takes bfloat16 only where it is not slower than float32.
        device: auto, cpu, cuda or mps.
        device_map: How the layers of a model that is larger than one device are spread: auto,
            balanced or sequential (as Accelerate does it); None keeps the model on one device.
        max_memory: What each device may hold with device_map, as {0: 10GB, cpu: 30GB}.
        offload_folder: Where device_map puts what no device holds; None allows no disk.
        attention: Attention implementation passed to transformers; auto takes eager on a CPU
            (faster than sdpa at short lengths there) and sdpa elsewhere.
        dropout: Probability of the model's own dropout layers in training; None keeps what the
            model's configuration says.
    """

    name: str = "smollm2-135m"
    revision: str | None = None
    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    max_memory: Mapping[str, str] = field(default_factory=dict)
    offload_folder: str | None = None
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    dropout: float | None = None

    def __post_init__(self) -> None:
        """Refuse an empty name, and placements of layers without a device map."""
        mapped = self.device_map is not None
        _check(
            self,
            (bool(self.name.strip()), "name", "must not be empty"),
            (mapped or not self.max_memory, "max_memory", "needs device_map"),
            (mapped or not self.offload_folder, "offload_folder", "needs device_map"),
            (self.dropout is None or 0 <= self.dropout < 1, "dropout", "must be in [0, 1)"),
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    r"""Which examples, and how they are divided.

    Attributes:
        source: A catalog name, a file (.jsonl, .json, .csv) or a hub dataset id.
        task: What is learned: chat (answers), classify (a label per text), regress (a number per
            text) or image (a label per image).
        format: How rows are to be understood; None finds out by looking at them.
        columns: Which column plays which part, where the guess is wrong, e.g. {question: Frage}.
        encoding: How the file's bytes are to be read, e.g. cp1252; None takes UTF-8.
        where: Keep only rows whose column has one of these values, e.g. {aspect: [description]}.
        limit: Keep at most this many rows, taken as whole groups; None keeps all.
        split_by: Column that already says train, validation, test (or control) per row.
            None divides by `group_by` instead.
        group_by: Column whose values stay together in one split; None groups by question, and id
            divides single rows.
        stratify_by: Column of which every value keeps its share in each split, to within one.
        time_by: Column of times; the newest rows are the test, the next newest validation.
        time_cuts: The moments from which rows are validation and test, as [2024-01-31,
            2024-05-31]; None finds them by the fractions, and newer rows then move them.
        validation_fraction: Share of groups used to choose (learning curve, early looks).
        test_fraction: Share of groups read once, at the end, for the report.
        balance_by: Column whose values are balanced in the training rows; None balances nothing.
        balance: over repeats rows of the rarer values, under leaves rows of the others out.
        max_tokens: Longest example in tokens; longer ones are refused, never cut.
        pair_at: For labels and scores: where each text is cut into two that the encoder reads as
            a pair, such as the words "\nPolicy: " between a question and a passage; None cuts
            nothing.
        system: System prompt put before every conversation; None leaves it to the template.
        replay: General text mixed into training, so that less is forgotten: a catalog name (of
            conversations, or of passages, which are learned from whole) or a file; None mixes in
            nothing.
        replay_share: Share of all training examples that are replayed ones.
        replay_unit: What the share counts: rows, or tokens, which weigh long rows as they train.
        faulty_rows: refuse stops at the first audit error; drop leaves those rows out and says so.
        seed: Seed of the division and of the choice of replayed rows.
    """

    source: str
    task: Task = "chat"
    format: RowFormat | None = None
    columns: Mapping[str, str] | None = None
    encoding: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = None
    split_by: str | None = None
    group_by: str | None = None
    stratify_by: str | None = None
    time_by: str | None = None
    time_cuts: tuple[str, ...] | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.15
    balance_by: str | None = None
    balance: Literal["over", "under"] = "over"
    max_tokens: int = 512
    pair_at: str | None = None
    system: str | None = None
    replay: str | None = None
    replay_share: float = 0.25
    replay_unit: Literal["rows", "tokens"] = "rows"
    faulty_rows: Literal["refuse", "drop"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse divisions that leave nothing to train on."""
        together = self.validation_fraction + self.test_fraction
        _check(
            self,
            (bool(self.source.strip()), "source", "must not be empty"),
            (self.limit is None or self.limit >= 1, "limit", "must be 1 or more"),
            (0 < self.validation_fraction < 1, "validation_fraction", "must be in (0, 1)"),
            (0 < self.test_fraction < 1, "test_fraction", "must be in (0, 1)"),
            (
                together < 1,
                "test_fraction",
                "and validation_fraction must leave something to train on (sum below 1)",
            ),
            (self.max_tokens >= 8, "max_tokens", "must be 8 or more"),
            (self.pair_at != "", "pair_at", "must not be empty"),
            (
                self.pair_at is None or self.task in ("classify", "regress"),
                "pair_at",
                "needs task classify or regress",
            ),
            (0 <= self.replay_share < 1, "replay_share", "must be in [0, 1)"),
            *self._division_rules(),
        )

    def _division_rules(self) -> Iterator[tuple[bool, str, str]]:
        """Give the rules on what cannot divide rows together."""
        for name in ("stratify_by", "time_by"):
            rule = "cannot be used with split_by, which already says where every row goes"
            yield not (getattr(self, name) and self.split_by), name, rule
        for name in ("stratify_by", "group_by"):
            rule = "cannot be used with time_by: time alone decides where a row goes"
            yield not (getattr(self, name) and self.time_by), name, rule
        cuts = self.time_cuts
        if cuts is not None:
            yield bool(self.time_by), "time_cuts", "needs time_by, the column they cut"
            rule = "must be two moments, the earlier first, such as [2024-01-31, 2024-05-31]"
            yield _are_ascending_moments(cuts), "time_cuts", rule


def _are_ascending_moments(texts: Sequence[str]) -> bool:
    try:
        moments = [datetime.datetime.fromisoformat(text) for text in texts]
    except ValueError:
        return False
    zoned = [moment.replace(tzinfo=moment.tzinfo or datetime.UTC) for moment in moments]
    return len(zoned) == 2 and zoned[0] < zoned[1]


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What is trained, by method. Field names follow peft's configurations.

    Attributes:
        kind: Method. Proven by sftkit: lora, rslora, dora, pissa, lora+, ia3, prompt, and the
            baselines freeze (the last blocks and the head) and full (every weight). Any other
            method of peft goes by peft's name for it, and is passed through unproven.
        r: Rank of each update; trainable parameters grow in proportion.
        lora_alpha: Numerator of the scale lora_alpha / r (Hu et al. 2021, section 4.1); of
            lora_alpha / sqrt(r) for rslora (Kalajdzievski 2023).
        lora_dropout: Probability of dropping an input of the update while training.
        target_modules: all-linear (every linear layer but the output head), attention, one
            regular expression, or module names such as [q_proj, v_proj].
        layers: Which blocks get updates, as [first, last] counted from 0; None means all.
        strength: What the trained update is multiplied by before it is tested and saved. Below 1,
            less is forgotten and a little less is known; 1 leaves it as trained.
        lora_plus_ratio: lora+ trains B at this many times the rate of A (Hayou et al. 2024).
        virtual_tokens: prompt learns this many tokens in front of every example.
        last_blocks: freeze trains this many of the last blocks.
        options: Further fields of peft's configuration for the method, by peft's names.
    """

    kind: str = "lora"
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    layers: tuple[int, ...] | None = None
    strength: float = 1.0
    lora_plus_ratio: float = 16.0
    virtual_tokens: int = 16
    last_blocks: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        layers = self.layers
        _check(
            self,
            (bool(self.kind.strip()), "kind", "must not be empty"),
            (self.r >= 1, "r", "must be 1 or more"),
            (self.lora_alpha > 0, "lora_alpha", "must be above 0"),
            (0 <= self.lora_dropout < 1, "lora_dropout", "must be in [0, 1)"),
            (bool(self.target_modules), "target_modules", "must name something"),
            (self.strength > 0, "strength", "must be above 0"),
            (self.lora_plus_ratio >= 1, "lora_plus_ratio", "must be 1 or more"),
            (self.virtual_tokens >= 1, "virtual_tokens", "must be 1 or more"),
            (self.last_blocks >= 1, "last_blocks", "must be 1 or more"),
            (
                layers is None or (len(layers) == 2 and 0 <= layers[0] <= layers[1]),
                "layers",
                "must be [first, last] with 0 <= first <= last",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What training minimises.

    Attributes:
        loss: auto takes cross-entropy, and mse for regress. focal weighs down what is already
            easy (Lin et al. 2017), huber weighs down outliers (Huber 1964).
        label_smoothing: Share of the target that is spread evenly over all classes, or over the
            vocabulary (Szegedy et al. 2016, section 7).
        class_weights: balanced weighs every class by rows / (classes × rows of the class), so
            that rare classes count as much as common ones; none counts every row once.
        focal_gamma: Exponent of the focal loss; 0 is cross-entropy.
        huber_delta: Error from which the Huber loss grows linearly, in units of the target's
            standard deviation.
    """

    loss: Loss = "auto"
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    focal_gamma: float = 2.0
    huber_delta: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that are no loss."""
        _check(
            self,
            (0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)"),
            (self.focal_gamma >= 0, "focal_gamma", "must be 0 or more"),
            (self.huber_delta > 0, "huber_delta", "must be above 0"),
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the adapter is trained.

    Attributes:
        optimizer: adamw, adam (weight decay inside the gradient), sgd, adafactor, or
            bitsandbytes' adamw-8bit, adamw-paged and adamw-paged-8bit.
        learning_rate: Peak rate of the optimizer, after warm-up.
        momentum: Momentum of sgd.
        betas: Decay of the two running means of adam and adamw.
        epochs: Passes over the training examples.
        max_steps: Stop after this many optimizer steps; None runs all epochs.
        max_tokens_per_batch: Tokens, padding included, that one optimizer step may hold.
        examples_per_batch: Examples that one optimizer step may hold, at most; None sets no limit
            beside the tokens. An image counts as one token.
        micro_batches: Forward passes one step is divided into. More need less memory and give
            the same gradient, because the loss is normalised over the whole step.
        activation_checkpointing: Compute activations twice instead of keeping them: less memory,
            about a third more time (Chen et al. 2016).
        schedule: Shape of the decay after warm-up.
        warmup_fraction: Share of all steps in which the rate rises from 0.
        weight_decay: Weight decay on the trained matrices; decoupled in adamw.
        max_grad_norm: Gradients are scaled down to this norm.
        neftune_alpha: Uniform noise of alpha / sqrt(tokens × width) on input embeddings in
            training (Jain et al. 2023); 0 adds none.
        heldout_evaluations: How often the validation loss is measured, evenly over the run.
        early_stopping: Metric that ends the run when it no longer improves, such as
            heldout_loss; the best weights are kept. None runs all steps.
        early_stopping_patience: Evaluations in a row without an improvement that end the run.
        save_every: Steps between checkpoints; None keeps none but the one of an asked-for stop.
        keep_last: Checkpoints that are kept, the newest ones.
        trackers: Who else is told every step, beside metrics.jsonl: none, or one or more of
            tensorboard, trackio, wandb and mlflow. All write to this machine only (W&B is
            offline) unless their own environment variables, such as WANDB_MODE, say otherwise.
        speed: auto uses faster parts in training where model and adapter allow: rows without
            padding, the beginning that all rows of a batch share computed once, layers and their
            updates in one function. off computes plainly. Losses agree up to rounding.
        seed: Seed of adapter weights, batch order and dropout.
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, ...] = (0.9, 0.999)
    epochs: int = 1
    max_steps: int | None = None
    max_tokens_per_batch: int = 640
    examples_per_batch: int | None = None
    micro_batches: int = 1
    activation_checkpointing: bool = False
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    neftune_alpha: float = 0.0
    heldout_evaluations: int = 5
    early_stopping: str | None = None
    early_stopping_patience: int = 2
    save_every: int | None = None
    keep_last: int = 2
    trackers: Literal["none", TrackerName] | tuple[TrackerName, ...] = "none"
    speed: Literal["auto", "off"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        rate_fits = math.isfinite(self.learning_rate) and self.learning_rate > 0
        steps_fit = self.max_steps is None or self.max_steps >= 1
        rows_fit = self.examples_per_batch is None or self.examples_per_batch >= 1
        saves_fit = self.save_every is None or self.save_every >= 1
        betas_fit = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check(
            self,
            (rate_fits, "learning_rate", "must be a finite number above 0"),
            (0 <= self.momentum < 1, "momentum", "must be in [0, 1)"),
            (betas_fit, "betas", "must be two numbers in [0, 1)"),
            (self.epochs >= 1, "epochs", "must be 1 or more"),
            (steps_fit, "max_steps", "must be 1 or more"),
            (self.max_tokens_per_batch >= 8, "max_tokens_per_batch", "must be 8 or more"),
            (rows_fit, "examples_per_batch", "must be 1 or more"),
            (self.micro_batches >= 1, "micro_batches", "must be 1 or more"),
            (0 <= self.warmup_fraction < 1, "warmup_fraction", "must be in [0, 1)"),
            (self.weight_decay >= 0, "weight_decay", "must be 0 or more"),
            (self.max_grad_norm > 0, "max_grad_norm", "must be above 0"),
            (self.neftune_alpha >= 0, "neftune_alpha", "must be 0 or more"),
            (self.heldout_evaluations >= 1, "heldout_evaluations", "must be 1 or more"),
            (self.early_stopping_patience >= 1, "early_stopping_patience", "must be 1 or more"),
            (saves_fit, "save_every", "must be 1 or more"),
            (self.keep_last >= 1, "keep_last", "must be 1 or more"),
            (self.seed >= 0, "seed", "must be 0 or more"),
        )


BIAS_SETS = ("stereoset", "wino", "crows-pairs")
"""What evaluate.fairness takes with data.task=chat."""
SWAPS = ("gender", "name", "nationality")
"""What it takes with labels, besides column:NAME."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured before and after training.

    Attributes:
        knowledge: exact compares generated answers word for word; recognition ranks the right
            answer against three answers of other questions (for long answers); none measures no
            knowledge.
        knowledge_items: Test questions used for the knowledge measure, at most.
        max_new_tokens: Longest generated answer in tokens.
        probes: Multiple-choice sets that measure lost ability: catalog names, or paths of JSON
            Lines files with question, options and answer (an option, or its position from 0), or
            harness:TASK for a multiple-choice task of lm-evaluation-harness.
        items_per_probe: Questions taken from each probe.
        drift_source: General passages: a catalog name, or the path of a text file (paragraphs
            between empty lines) or of a JSON Lines file with text.
        drift_passages: General passages whose loss measures drift; 0 measures none.
        passage_tokens: Tokens of each passage that are scored.
        style_items: Test examples whose answer loss is measured, at most.
        drift_margin: Change of loss, nats per token, below which general text counts as unmoved.
        ability_margin: Loss of accuracy, as a share of 1, below which ability counts as kept.
        side_by_side: How many prompts are answered by both models for reading.
        resamples: Bootstrap resamples per interval.
        adapter_scale: Strength of the adapter while it is evaluated; 1 is as trained, 0 is off.
        baselines: Other ways to ask the base model, which a fine-tune has to beat: few-shot shows
            it training examples first; system gives it system_prompt.
        few_shot: Examples that are shown by few-shot.
        system_prompt: What the base model is told by system.
        baseline: What a classifier or regression has to beat: tfidf trains a linear model on
            word counts beside it; none trains none.
        fairness: Which gaps between groups of people are measured. Of a chat model bias sets, by
            catalog name (stereoset, wino, crows-pairs; items_per_probe pairs of each); of a model
            with labels what is swapped in its test texts (gender, name, nationality), and
            column:NAME for groups that a column of the data names.
        calibration: Whether confidence is held against accuracy, of predicted classes or of a chat
            model's answers to the probes.
        behaviour: Behaviour tests: the name of a bundled file (shop-chat, shop-tickets), or the
            path of a YAML file; empty tests none.
    """

    knowledge: Literal["exact", "recognition", "none"] = "exact"
    knowledge_items: int = 120
    max_new_tokens: int = 16
    probes: tuple[str, ...] = ("piqa", "openbookqa", "commonsenseqa")
    items_per_probe: int = 200
    drift_source: str = "boolq"
    drift_passages: int = 100
    passage_tokens: int = 128
    style_items: int = 120
    drift_margin: float = 0.1
    ability_margin: float = 0.05
    side_by_side: int = 6
    resamples: int = 4000
    adapter_scale: float = 1.0
    baselines: tuple[Literal["few-shot", "system"], ...] = ()
    few_shot: int = 4
    system_prompt: str = ""
    baseline: Literal["tfidf", "none"] = "tfidf"
    fairness: tuple[str, ...] = ()
    calibration: bool = False
    behaviour: str = ""

    def __post_init__(self) -> None:
        """Refuse measures that measure nothing."""
        counts = ("knowledge_items", "max_new_tokens", "items_per_probe", "style_items", "few_shot")
        told = "system" not in self.baselines or bool(self.system_prompt)
        sizes = ("drift_passages", "side_by_side", "adapter_scale")
        margins = ("drift_margin", "ability_margin")
        _check(
            self,
            *((getattr(self, name) >= 1, name, "must be 1 or more") for name in counts),
            *((getattr(self, name) >= 0, name, "must be 0 or more") for name in sizes),
            *((getattr(self, name) > 0, name, "must be above 0") for name in margins),
            (self.passage_tokens >= 8, "passage_tokens", "must be 8 or more"),
            (self.resamples >= 200, "resamples", "must be 200 or more"),
            (told, "system_prompt", "must say what the baseline 'system' tells the base model"),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, described whole.

    Attributes:
        name: Short name of the run; letters, digits, dots, dashes and underscores.
        model: Base model settings.
        data: Data settings.
        adapter: Adapter settings.
        objective: What training minimises.
        train: Training settings.
        evaluate: Evaluation settings.
    """

    name: str
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        """Refuse names that make bad folders, and combinations that cannot work."""
        faults = _impossible(self)
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is None:
            expected = "must be letters, digits, '.', '-' or '_'"
            faults.insert(0, f"Recipe.name {expected}, got {self.name!r}.")
        if faults:
            raise SettingsError("\n".join(faults))


def _impossible(recipe: Recipe) -> list[str]:
    """List combinations that are fine one by one and impossible together."""
    faults = []
    if recipe.model.quantization != "none" and recipe.model.device == "mps":
        faults.append(
            f"model.quantization={recipe.model.quantization} needs a CPU or CUDA device, got "
            "model.device=mps. Use quantization: none, or device: cpu."
        )
    if recipe.data.max_tokens > recipe.train.max_tokens_per_batch:
        faults.append(
            f"data.max_tokens={recipe.data.max_tokens} exceeds train.max_tokens_per_batch="
            f"{recipe.train.max_tokens_per_batch}: such an example fits into no batch. Raise "
            "max_tokens_per_batch or lower max_tokens."
        )
    if recipe.model.dtype == "float16" and recipe.model.device == "cpu":
        faults.append(
            "model.dtype=float16 on model.device=cpu cannot train stably. Use dtype: auto."
        )
    loss, task = recipe.objective.loss, recipe.data.task
    fitting = LOSSES[task]
    if loss != "auto" and loss not in fitting:
        faults.append(
            f"objective.loss={loss} does not fit data.task={task}. Use auto, or one of "
            f"{', '.join(fitting)}."
        )
    if recipe.objective.class_weights != "none" and task not in ("classify", "image"):
        faults.append(f"objective.class_weights needs classes, and data.task={task} has none.")
    if recipe.objective.label_smoothing and task == "regress":
        faults.append("objective.label_smoothing needs classes, and data.task=regress has none.")
    if recipe.evaluate.baselines and (task != "chat" or recipe.evaluate.knowledge == "none"):
        faults.append(
            f"evaluate.baselines={list(recipe.evaluate.baselines)} are asked for knowledge in "
            f"words, with data.task=chat and evaluate.knowledge=exact or recognition; got "
            f"{task} and {recipe.evaluate.knowledge}. Leave them out."
        )
    if recipe.evaluate.calibration and (
        task == "regress" or (task == "chat" and not recipe.evaluate.probes)
    ):
        needs = "probes" if task == "chat" else "classes, and data.task=regress has none"
        faults.append(f"evaluate.calibration needs {needs}. Set it to false, or give them.")
    if recipe.evaluate.behaviour and task == "image":
        faults.append("evaluate.behaviour tests texts, and data.task=image has none. Leave it out.")
    known = {"chat": BIAS_SETS, "image": ()}.get(task, SWAPS)
    faults += [
        f"evaluate.fairness={name} does not fit data.task={task}. Valid: "
        f"{', '.join((*known, *(['column:NAME'] if task in ('classify', 'image') else [])))}."
        for name in recipe.evaluate.fairness
        if name not in known and not (task in ("classify", "image") and name.startswith("column:"))
    ]
    return faults


def _check(settings: object, *rules: tuple[bool, str, str]) -> None:
    """Raise one SettingsError that names every broken rule (holds, field, what is expected)."""
    names = {name for holds, name, _ in rules if not holds}
    for info in dataclasses.fields(settings):  # type: ignore[arg-type]  # callers are dataclasses
        value = getattr(settings, info.name)
        if isinstance(value, float) and not math.isfinite(value) and info.name not in names:
            rules = (*rules, (False, info.name, "must be a finite number"))
    faults = [
        f"{type(settings).__name__}.{name} {expected}, got {getattr(settings, name)!r}."
        for holds, name, expected in rules
        if not holds
    ]
    if faults:
        raise SettingsError("\n".join(faults))


def loss_unit(task: str, loss: str) -> str:
    """Say what a loss is counted in, for figures."""
    if loss in ("focal", "huber"):
        return loss
    of_task = {"regress": "squared standard deviations", "chat": "nats per token"}
    return of_task.get(task, "nats per label")


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value
