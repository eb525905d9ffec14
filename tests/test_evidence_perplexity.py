"""Loss on given text counts tokens, not rows, and not the company a row is scored in."""

from __future__ import annotations

import pytest
import torch

from sftkit.evidence.perplexity import (
    TOKENS_PER_BATCH,
    TokenLoss,
    batches_by_length,
    encode_passages,
    mean_loss,
    score_examples,
)
from sftkit.records import IGNORE, Encoded
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
MODEL = make_model(vocab_size=len(TOKENIZER))


def by_hand(ids: tuple[int, ...], first: int) -> float:
    """Sum the cross-entropy of ids from position `first` on, from all logits."""
    with torch.no_grad():
        logprobs = torch.log_softmax(MODEL(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(logprobs[place - 1, ids[place]]) for place in range(first, len(ids)))


def test_the_mean_weighs_tokens_not_rows():
    scores = [TokenLoss(nats=2.0, tokens=1), TokenLoss(nats=3.0, tokens=9)]
    assert mean_loss(scores) == 0.5
    assert [score.mean for score in scores] == [2.0, 3.0 / 9]


def test_a_rows_loss_is_the_one_computed_by_hand():
    answer = Encoded(input_ids=(5, 6, 7, 8), labels=(IGNORE, IGNORE, 7, 8))
    whole = Encoded(input_ids=(9, 10, 11), labels=(IGNORE, 10, 11))
    scores = score_examples(MODEL, [answer, whole])
    assert [score.tokens for score in scores] == [2, 2]
    assert scores[0].nats == pytest.approx(by_hand((5, 6, 7, 8), 2), abs=1e-4)
    assert scores[1].nats == pytest.approx(by_hand((9, 10, 11), 1), abs=1e-4)


def test_company_padding_and_order_change_no_score():
    rows = [
        Encoded(input_ids=ids, labels=(IGNORE, *ids[1:]))
        for ids in (tuple(range(length, 3 * length)) for length in range(1, 60, 3))
    ]
    together = score_examples(MODEL, rows)
    back = score_examples(MODEL, rows[::-1])[::-1]
    alone = [score_examples(MODEL, [row])[0] for row in rows]
    for one, other, third in zip(together, alone, back, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-4)
        assert one.nats == pytest.approx(third.nats, abs=1e-4)
        assert one.tokens == other.tokens == third.tokens


def test_the_same_rows_give_the_same_bits_again():
    rows = encode_passages(["A passage.", "Another one, longer."], TOKENIZER, max_tokens=50)
    assert score_examples(MODEL, rows) == score_examples(MODEL, rows)


def test_scoring_leaves_the_model_as_it_was_and_without_gradients():
    model = make_model(vocab_size=len(TOKENIZER)).requires_grad_(True)
    rows = encode_passages(["A passage."], TOKENIZER, max_tokens=50)
    model.train()
    score_examples(model, rows)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    score_examples(model, rows)
    assert not model.training


def test_passages_are_scored_on_their_first_tokens_all_but_the_very_first():
    passages = encode_passages(["abc", "abcdefgh"], TOKENIZER, max_tokens=5)
    a, b, c, d, e = (TOKENIZER.vocab[letter] for letter in "abcde")
    assert passages == (
        Encoded(
            input_ids=(a, b, c), labels=(IGNORE, b, c), row=0, group="0", end_of_turn=False
        ),
        Encoded(
            input_ids=(a, b, c, d, e),
            labels=(IGNORE, b, c, d, e),
            row=1,
            group="1",
            end_of_turn=False,
        ),
    )  # fmt: skip


def test_passages_in_which_nothing_can_be_predicted_are_left_out():
    passages = encode_passages(["", "a", "ab"], TOKENIZER, max_tokens=5)
    assert [(passage.row, passage.supervised) for passage in passages] == [(2, 1)]


def test_batches_hold_like_lengths_up_to_the_budget():
    assert batches_by_length([5, 2, 5, 2], max_tokens=10) == [[1, 3], [0, 2]]
    assert batches_by_length([TOKENS_PER_BATCH + 1, 1]) == [[1], [0]]
