"""What every broken run is trained and examined with: one base model, a few facts, one chart.

A training puts a fresh adapter on the base and takes it off in the end, so there is never a second
chat model in memory but where a fault is about one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.clinic import Chart
from sftkit.errors import SettingsError, SftkitError
from sftkit.records import IGNORE, Answer, Encoded, Step, TrainRecord, is_exact
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.evidence.perplexity import TokenLoss

Row = Mapping[str, Any]
GENERAL = "What is the capital of France?"
ADAPTER = AdapterSettings(r=16, lora_alpha=32)


@dataclass(frozen=True, kw_only=True)
class ClinicSettings:
    """The healthy run that all others are made from.

    Attributes:
        model: The chat model.
        label_model: The encoder of the run with labels.
        facts: Facts of the shop that are taught, an even number.
        steps: Optimizer steps of every training.
        tokens_per_step: Tokens of one step, padding included.
        measurements: How often a training measures fresh rows, after its first look.
        learning_rate: Rate of the healthy run.
        huge_rate: Rate of the run whose rate is huge.
        passages: General passages whose loss is measured.
        max_new_tokens: Longest answer in tokens.
        tickets: Training tickets of the run with labels.
        ticket_epochs: Passes over them.
        seed: Seed of every training.
        order: Seed of the order of the patients.
    """

    model: str = "smollm2-135m"
    label_model: str = "minilm-l6"
    facts: int = 6
    steps: int = 14
    tokens_per_step: int = 384
    measurements: int = 3
    learning_rate: float = 2e-3
    huge_rate: float = 0.1
    passages: int = 8
    max_new_tokens: int = 12
    tickets: int = 120
    ticket_epochs: int = 4
    seed: int = 0
    order: int = 0

    def __post_init__(self) -> None:
        """Refuse a number of facts that cannot be taught in two halves."""
        if self.facts < 2 or self.facts % 2:
            raise SettingsError(f"ClinicSettings.facts must be 2, 4, 6, …, got {self.facts}.")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every chat run is trained and examined with.

    Attributes:
        settings: Sizes and rates.
        source: Where the base came from.
        base: The base model, without an adapter.
        tokenizer: Its tokenizer.
        train: Rows to teach, fact by fact.
        test: Rows whose score a report would state: phrasings that are not taught.
        fresh: Rows that nobody reports on: further phrasings of the same facts.
        passages: General text, encoded.
        before: The base's losses of the tested rows, the fresh rows and the passages.
        said: What the base answers, by question.
    """

    settings: ClinicSettings
    source: catalog.ModelSource
    base: Any
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Row]
    test: Sequence[Row]
    fresh: Sequence[Row]
    passages: Sequence[Encoded]
    before: Mapping[str, Sequence[TokenLoss]] = dataclasses.field(default_factory=dict)
    said: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, settings: ClinicSettings) -> Bench:
        """Load the base, choose the facts, and examine the base."""
        from sftkit.evidence.perplexity import encode_passages
        from sftkit.model import load_model, load_tokenizer, pick_dtype

        wanted = ModelSettings(name=settings.model)
        source = catalog.fetch_model(wanted)
        tokenizer = load_tokenizer(wanted, source=source)
        rows = [row for row in catalog.dataset_rows("shop") if row["split"] != "control"]
        names = list(dict.fromkeys(row["group"] for row in rows))
        kept = {names[place * len(names) // settings.facts] for place in range(settings.facts)}
        parts = {
            split: [row for row in rows if row["split"] == split and row["group"] in kept]
            for split in ("train", "validation", "test")
        }
        texts = catalog.passages("boolq", settings.passages)
        bench = cls(
            settings=settings,
            source=source,
            base=load_model(wanted, dtype=pick_dtype(wanted).dtype, source=source),
            tokenizer=tokenizer,
            train=parts["train"],
            test=parts["test"],
            fresh=parts["validation"],
            passages=encode_passages(texts, tokenizer, max_tokens=64),
        )
        said = {answer.question: answer.tuned for answer, _ in bench.ask(bench.base)}
        return dataclasses.replace(bench, before=bench.score(bench.base), said=said)

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> tuple[Encoded, ...]:
        """Encode conversations; the template's own system prompt is left out."""
        from sftkit.chat import encode_rows

        tokenizer = tokenizer or self.tokenizer
        return encode_rows(rows, tokenizer, max_tokens=512, system="").examples

    def score(self, model: Any) -> dict[str, tuple[TokenLoss, ...]]:
        """Measure the losses of tested rows, fresh rows and passages."""
        from sftkit.evidence.perplexity import score_examples

        test, fresh = self.encode(self.test), self.encode(self.fresh)
        scores = score_examples(model, (*test, *fresh, *self.passages))  # in as few batches
        ends = (len(test), len(test) + len(fresh))
        return {
            "test": scores[: ends[0]],
            "fresh": scores[ends[0] : ends[1]],
            "passages": scores[ends[1] :],
        }

    def ask(self, model: Any) -> list[tuple[Answer, bool]]:
        """Let a model answer one tested and one fresh question per fact, and a general one.

        Returns:
            Answers, and whether each was ended. What the base says is left empty before it is
            known.
        """
        from sftkit.chat import encode_prompt, split_question
        from sftkit.evidence.generation import write_answers

        first = {row["group"]: row for row in reversed(self.test)}
        asked = [("test", row) for row in first.values()] + [("fresh", row) for row in self.fresh]
        halves = [(split, *split_question(row["messages"])) for split, row in asked]
        halves.append(("general", [{"role": "user", "content": GENERAL}], ""))
        prompts = [encode_prompt(turns, self.tokenizer, system="") for _, turns, _ in halves]
        written = write_answers(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.settings.max_new_tokens,
            rows_per_batch=len(prompts),
        )
        return [
            (
                Answer(
                    question=turns[-1]["content"],
                    expected=expected,
                    base=self.said.get(turns[-1]["content"], ""),
                    tuned=answer.text,
                    split=split,
                ),
                answer.ended,
            )
            for (split, turns, expected), answer in zip(halves, written, strict=True)
        ]

    @contextlib.contextmanager
    def trained(
        self, examples: Sequence[Encoded], heldout: Sequence[Encoded], *, base: Any = None,
        **changes: Any,
    ) -> Iterator[tuple[Any, TrainRecord]]:  # fmt: skip
        """Train a fresh adapter, and take it off in the end.

        Args:
            examples: What is taught.
            heldout: Examples measured before, between and after, for the log of the training.
            base: Another base than the bench's.
            changes: Training settings that differ.
        """
        from sftkit.adapter import attach_adapter, take_apart
        from sftkit.evidence.perplexity import mean_loss, score_examples
        from sftkit.objectives import chat_loss
        from sftkit.train import train

        base = self.base if base is None else base
        model = attach_adapter(base, ADAPTER, seed=self.settings.seed)
        try:
            record = train(
                model,
                examples,
                self.plan(**changes),
                objective=chat_loss,
                measure=lambda: {"heldout_loss": mean_loss(score_examples(model, heldout))},
            )
            yield model, record
        finally:
            take_apart(base)

    def plan(self, **changes: Any) -> TrainSettings:
        """Give the healthy run's settings, with changes."""
        own = self.settings
        usual = TrainSettings(
            learning_rate=own.learning_rate,
            epochs=own.steps,
            max_steps=own.steps,
            max_tokens_per_batch=own.tokens_per_step,
            heldout_evaluations=own.measurements,
            seed=own.seed,
        )
        return dataclasses.replace(usual, **changes)

    def examine(
        self,
        fault: str,
        model: Any,
        record: TrainRecord,
        examples: Sequence[Encoded],
        *,
        rows: Sequence[Row] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        refusal: str = "",
        start: float | None = None,
    ) -> Chart:
        """Put a model to the same small examination, where it is used.

        Args:
            fault: What is wrong with it.
            model: The model, as it is used.
            record: What its training wrote down.
            examples: What it was trained on.
            rows: The rows these were made from; None means the usual ones.
            tokenizer: That of the training, if it was another.
            refusal: What sftkit said of it.
            start: The base's loss of fresh rows, if the base is not the bench's.
        """
        from sftkit.chat import encode_prompt, split_question
        from sftkit.dataset.contamination import find_overlap
        from sftkit.evidence.perplexity import mean_loss
        from sftkit.show import show_mask

        rows = self.train if rows is None else rows
        after, said = self.score(model), self.ask(model)
        example, row = examples[0], rows[examples[0].row]
        turns, _ = split_question(row["messages"])
        prompt = encode_prompt(turns, self.tokenizer, system="")
        questions = [[one["messages"][0]["content"] for one in part] for part in (rows, self.test)]
        overlap = find_overlap(*questions, kinds=("exact",))
        pairs = zip(self.before["test"], after["test"], strict=True)
        curve = [step.heldout_loss for step in record.steps if step.heldout_loss is not None]
        before = mean_loss(self.before["fresh"]) if start is None else start
        shown = [answer for answer, _ in said]

        def right(split: str) -> tuple[int, int]:
            own = [answer for answer in shown if answer.split == split]
            return sum(is_exact(answer.tuned, answer.expected) for answer in own), len(own)

        return Chart(
            fault=fault,
            steps=record.steps,
            log=(record.heldout_start or 0.0, curve[-1]),
            here=(before, mean_loss(after["fresh"])),
            example=show_mask(example, tokenizer or self.tokenizer),
            ends_learned=(example.end_of_turn, example.supervised),
            asked=str(self.tokenizer.decode(list(prompt))),
            asked_as_trained=example.input_ids[: len(prompt)] == prompt,
            answers=(shown[0], shown[-1]),
            tested=right("test"),
            fresh=right("fresh"),
            test_loss=mean_loss(after["test"]),
            ended=(sum(ended for _, ended in said), len(said)),
            unmoved=(sum(one.nats == two.nats for one, two in pairs), len(after["test"])),
            drift=mean_loss(after["passages"]) - mean_loss(self.before["passages"]),
            overlap=(len(overlap.rows), overlap.test_rows),
            refusal=refusal,
            events=record.events,
        )


# --- Going round a refusal ---------------------------------------------------------------------


def told(call: Callable[[], Any]) -> str:
    """Say what sftkit says of a fault; empty if it lets it pass."""
    try:
        call()
    except SftkitError as error:
        return str(error)
    return ""


def train_plainly(
    model: Any, examples: Sequence[Encoded], heldout: Sequence[Encoded], settings: TrainSettings
) -> TrainRecord:
    """Train as many scripts do: without asking whether there is anything to learn.

    The loss of a step is its sum over the count of supervised tokens, or over 1 if there is none.
    """
    import torch

    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.forward import collate, precision_of
    from sftkit.train import plan_steps

    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    start, steps, tokens = mean_loss(score_examples(model, heldout)), [], 0
    plan = plan_steps([example.length for example in examples], settings)
    for number, chosen in enumerate(plan, start=1):
        batch = collate([examples[row] for row in chosen], pad_id=0, device=model.device)
        labels = batch.pop("labels")[:, 1:]
        with precision_of(model):
            logits = model(**batch).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        ) / max(int((labels != IGNORE).sum()), 1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(examples[row].length for row in chosen)
        held = mean_loss(score_examples(model, heldout)) if number == len(plan) else None
        steps.append(
            Step(
                step=number, loss=float(loss.detach()), learning_rate=settings.learning_rate,
                grad_norm=float(norm), tokens=tokens, seconds=0.0, heldout_loss=held,
            )
        )  # fmt: skip
    return TrainRecord(
        steps=tuple(steps),
        heldout_start=start,
        kept_step=len(steps),
        tokens=tokens,
        supervised_tokens=sum(example.supervised for example in examples),
        seconds=0.0,
        trainable_parameters=sum(weight.numel() for weight in weights),
        total_parameters=sum(weight.numel() for weight in model.parameters()),
    )


def fingerprint_of(model: Any) -> str:
    """Give the SHA-256 of a model's weights, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
