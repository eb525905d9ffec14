"""Ways of holding one base model, each tried in a process of its own.

Memory can be compared only between fresh processes: what one model needed at its peak, the next one
would find there already. `python -m sftkit.holdings` is that process.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.evidence_records import Change
from sftkit.settings import Recipe

ANSWERED = 16
NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one way of holding the base model took, and what it answered.

    Attributes:
        weight_bytes: Weights and buffers of the base model.
        peak_bytes: Most memory the process held, training included.
        load_s: Seconds to load the base model.
        step_s: Median of the seconds of a training step, the first left out.
        lengths: Tokens of each training example, and how many of them are supervised.
        losses: Loss of each general passage before training, summed, and its scored tokens.
        next_tokens: The likeliest next token at every scored place of the passages.
        answers: Answers to test questions before training, greedy.
    """

    weight_bytes: int
    peak_bytes: int
    load_s: float
    step_s: float
    lengths: tuple[tuple[int, int], ...]
    losses: tuple[tuple[float, int], ...]
    next_tokens: tuple[int, ...]
    answers: tuple[str, ...]


def try_holding(recipe: Recipe, *, wait_s: float = 900.0) -> Holding:
    """Load a recipe's base model in a fresh process, score it, and train an adapter as it says.

    Args:
        recipe: Model, data, adapter and training; `train.max_steps` keeps it short,
            `evaluate.drift_passages` says how many passages are scored.
        wait_s: The process is ended after so many seconds.

    Raises:
        SftkitError: The process fails; with its own last words.
    """
    from sftkit.recipe import yaml_text

    try:
        done = subprocess.run(
            [sys.executable, "-m", "sftkit.holdings"],
            input=yaml_text(recipe), capture_output=True, text=True, encoding="utf-8",
            timeout=wait_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SftkitError(f"{recipe.name}: not done after {wait_s:g} s. Use fewer steps.") from None
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no words"]
        raise SftkitError(f"{recipe.name}: the process ended with {words[-1].strip()[:400]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    pairs: dict[str, Any] = {
        name: tuple(map(tuple, said.pop(name))) for name in ("lengths", "losses")
    }
    lists: dict[str, Any] = {name: tuple(said.pop(name)) for name in ("next_tokens", "answers")}
    return Holding(**pairs, **lists, **said)


def cost_of(holding: Holding, reference: Holding) -> Change:
    """Compare the loss on general passages, passage by passage, in nats per token."""
    from sftkit.evidence.statistics import paired_change

    return paired_change(
        [nats / tokens for nats, tokens in reference.losses],
        [nats / tokens for nats, tokens in holding.losses],
        groups=[str(place) for place in range(len(reference.losses))],
        weights=[tokens for _, tokens in reference.losses],
    )


def agreement_of(holding: Holding, reference: Holding) -> tuple[float, float]:
    """Give the shares of equal likeliest next tokens, and of answers equal word for word."""
    return (
        _same(holding.next_tokens, reference.next_tokens),
        _same(holding.answers, reference.answers),
    )


def held_bytes(model: Any) -> int:
    """Count the bytes of a model's weights and buffers, the scales of 4-bit weights included."""
    total = int(model.get_memory_footprint())
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        nested = getattr(state, "state2", None)
        parts = [(one.absmax, one.code) for one in (state, nested) if one is not None]
        total += sum(tensor.nbytes for pair in parts for tensor in pair)
    return total


def rounding_errors(quantized: Any, exact: Any) -> dict[str, float]:
    """Measure what quantizing did to each layer: the error's norm over the weights' norm.

    Args:
        quantized: A model loaded in int8, nf4 or fp4.
        exact: The same model in float32.

    Returns:
        Relative error by the name of the layer; layers that are not quantized are left out.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    layers = dict(exact.named_modules())
    errors = {}
    for name, layer in quantized.named_modules():
        weight: Any = getattr(layer, "weight", None)
        if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):
            truth = layers[name].weight.float()
            rounded = dequantize_bnb_weight(weight, getattr(layer, "state", None)).float()
            errors[name] = float((rounded - truth).norm() / truth.norm())
    return errors


def _same(one: Sequence[Any], other: Sequence[Any]) -> float:
    return statistics.fmean(map(lambda a, b: a == b, one, other))


def main() -> None:
    """Try one holding, inside the process."""
    from sftkit import catalog, model
    from sftkit.adapter import attach_adapter
    from sftkit.evidence.generation import generate_answers
    from sftkit.evidence.perplexity import encode_passages
    from sftkit.objectives import chat_loss
    from sftkit.prepare import prepare_data
    from sftkit.progress import peak_memory_bytes
    from sftkit.recipe import parse_yaml, recipe_from_dict
    from sftkit.train import train

    recipe = recipe_from_dict(parse_yaml(sys.stdin.read(), where="the recipe"))
    source = catalog.fetch_model(recipe.model)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    data = prepare_data(recipe, tokenizer, {})
    texts = catalog.passages(recipe.evaluate.drift_source, recipe.evaluate.drift_passages)
    passages = encode_passages(texts, tokenizer, max_tokens=recipe.evaluate.passage_tokens)
    started = time.perf_counter()
    base = model.load_model(recipe.model, source=source)
    model.check_trainable(base)
    load_s = time.perf_counter() - started
    losses, next_tokens = _score(base, passages)
    asked = [
        example.input_ids[: next(p for p, label in enumerate(example.labels) if label >= 0)]
        for example in data.validation[:ANSWERED]
    ]
    answers = generate_answers(base, tokenizer, asked, max_new_tokens=NEW_TOKENS)
    weight_bytes = held_bytes(base)
    tuned = attach_adapter(base, recipe.adapter, seed=recipe.train.seed)
    steps = train(tuned, data.train, recipe.train, objective=chat_loss).steps
    clock = [step.seconds for step in steps]
    later = [after - before for before, after in itertools.pairwise(clock)] or clock
    lengths = [(len(e.input_ids), sum(label >= 0 for label in e.labels)) for e in data.train]
    found = Holding(
        weight_bytes=weight_bytes,
        peak_bytes=peak_memory_bytes(),
        load_s=load_s,
        step_s=statistics.median(later),
        lengths=tuple(lengths),
        losses=tuple(losses),
        next_tokens=tuple(next_tokens),
        answers=answers,
    )
    sys.stdout.write(json.dumps(vars(found)) + "\n")


def _score(base: Any, passages: Sequence[Any]) -> tuple[list[tuple[float, int]], list[int]]:
    """Give each passage's summed loss and scored tokens, and the likeliest token at every place."""
    import torch

    from sftkit.forward import logits_at, scoring

    losses, likeliest = [], []
    with scoring(base):
        for passage in passages:
            ids = torch.tensor([passage.input_ids], device=base.device)
            chosen = torch.ones_like(ids, dtype=torch.bool)
            chosen[:, -1] = False  # the last token predicts nothing that is there
            logits = logits_at(base, chosen, input_ids=ids)
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            losses.append((loss.item(), logits.shape[0]))
            likeliest += logits.argmax(-1).tolist()
    return losses, likeliest


if __name__ == "__main__":
    main()
