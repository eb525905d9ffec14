"""The real 135M model: its known scores, and an adapter that is nothing until it is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.adapter import adapter_off, adapter_scaled, attach_adapter
from sftkit.catalog import passages, probe_items
from sftkit.evidence.choice import encode_choices, score_choices
from sftkit.evidence.forgetting import (
    accuracy,
    compare_forgetting,
    make_forgetting_test,
    score_forgetting,
)
from sftkit.evidence.perplexity import encode_passages, score_examples
from sftkit.model import load_model, load_tokenizer, pick_dtype
from sftkit.settings import AdapterSettings, EvaluateSettings, ModelSettings

pytestmark = [pytest.mark.model, pytest.mark.timeout(1800)]
SETTINGS = ModelSettings(name="smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SETTINGS)


@pytest.fixture(scope="module")
def base() -> Any:
    choice = pick_dtype(SETTINGS)
    print(f"dtype: {choice.name}, {choice.reason}")
    return load_model(SETTINGS, dtype=choice.dtype)


# Published for SmolLM2-135M and its Instruct: PIQA 66 to 68, CommonsenseQA 34.
@pytest.mark.parametrize(("name", "known"), [("piqa", 0.67), ("commonsenseqa", 0.34)])
def test_the_base_model_scores_as_is_known_of_it(base, tokenizer, name, known):
    items = probe_items(name, 200)
    assert len(items) == 200
    score = accuracy(items, score_choices(base, encode_choices(items, tokenizer)))
    print(f"{name}: {score:.3f}")
    assert score == pytest.approx(known, abs=0.03)


def test_a_fresh_adapter_changes_no_logit_of_the_real_model(base, tokenizer):
    ids = torch.tensor([tokenizer("The harbour opens at noon.")["input_ids"]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        tuned = attach_adapter(base, AdapterSettings())
        try:
            assert torch.equal(tuned(input_ids=ids).logits, before)
            example = encode_passages(["The harbour opens at noon."], tokenizer, max_tokens=64)
            with adapter_off(tuned):
                off = score_examples(tuned, example)
            assert score_examples(tuned, example) == off  # in the precision scoring runs in
        finally:
            tuned.unload()


def test_a_zero_scaled_adapter_changes_no_score_of_the_real_model(base, tokenizer):
    settings = EvaluateSettings(resamples=200, passage_tokens=64)
    probes = {name: probe_items(name, 10) for name in ("piqa", "commonsenseqa")}
    test = make_forgetting_test(probes, passages("boolq", 20), tokenizer, settings)
    tuned = attach_adapter(base, AdapterSettings())
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.02)
        with adapter_off(tuned):
            before = score_forgetting(tuned, test)
        with adapter_scaled(tuned, 0.0):
            after = score_forgetting(tuned, test)
        trained = score_forgetting(tuned, test)
    finally:
        tuned.unload()
    assert (len(before.passages), len(before.choices)) == (20, 20)
    assert after == before
    forgot = compare_forgetting(test, before, after, settings)
    assert forgot.overall is not None
    assert forgot.drift is not None
    assert (forgot.overall.delta, forgot.overall.ci95) == (0.0, (0.0, 0.0))
    assert (forgot.overall.logprob_delta, forgot.overall.logprob_ci95) == (0.0, (0.0, 0.0))
    assert (forgot.drift.delta, forgot.drift.ci95) == (0.0, (0.0, 0.0))
    assert trained != before  # the adapter does something when it is on
