"""Faster parts against their plain twins: the same logits, losses and gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sftkit import packed, speed, speed_rules
from sftkit.adapter import attach_adapter
from sftkit.forward import answer_losses, collate, hidden_at
from sftkit.records import IGNORE, Encoded
from sftkit.settings import AdapterSettings, TrainSettings
from tests.conftest import make_model
from tests.test_train import make_examples

CHECKOUT = Path(__file__).resolve().parent.parent
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),  # biases
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8}),  # norms of queries and keys
    "mistral": (transformers.MistralConfig, {"sliding_window": 32}),
    "phi3": (transformers.Phi3Config, {}),  # one layer for queries, keys and values
    "gemma": (transformers.GemmaConfig, {"head_dim": 8}),  # other norms and feed-forward parts
    "olmo2": (transformers.Olmo2Config, {}),
}
AUTO, OFF = TrainSettings(speed="auto"), TrainSettings(speed="off")


def make_tuned(
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
    **adapter: Any,
) -> Any:
    """Make a tiny model of a family, with an adapter that already changes something."""
    torch.manual_seed(0)
    kind, extra = FAMILIES[family]
    config = kind(**{**SHAPE, **extra})
    config._attn_implementation = attention
    base = transformers.AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False)
    model = attach_adapter(base, AdapterSettings(**(adapter or {"r": 4})), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model.train()


def make_batch(shared: int = 5) -> dict[str, torch.Tensor]:
    """Make four rows of different length that begin alike; the last two tokens are supervised."""
    chance = torch.Generator().manual_seed(1)
    begin = torch.randint(1, 64, (shared,), generator=chance).tolist()
    rows = []
    for number, own in enumerate((3, 9, 5, 9)):
        rest = torch.randint(1, 64, (own,), generator=chance).tolist()
        ids = (*begin, 1 + number, *rest)
        labels = (*[IGNORE] * (len(ids) - 2), *ids[-2:])
        rows.append(Encoded(input_ids=ids, labels=labels))
    return collate(rows, pad_id=0, device=torch.device("cpu"))


def learn(
    model: Any, settings: TrainSettings, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the losses of supervised tokens, and the whole gradient in one piece."""
    with speed.fast_training(model, settings):
        losses, _ = answer_losses(model, batch)
        losses.mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return losses.detach(), gradient


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


# ---- rows without padding ----


def test_packed_rows_are_the_shared_beginning_and_then_each_rows_own():
    ids = torch.tensor([[7, 8, 1, 2, 0], [7, 8, 3, 0, 0], [7, 8, 4, 5, 6]])
    layout = packed.pack(ids, [4, 3, 5])
    assert layout.shared == 2
    assert layout.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 6]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4]]
    assert layout.places.tolist() == [[0, 1, 2, 3, 3], [0, 1, 4, 4, 4], [0, 1, 5, 6, 7]]
    assert (layout.mask[1, 0] == 0).int().tolist() == [
        [1, 1, 1, 0, 0],  # what is shared, and itself
        [1, 1, 1, 1, 0],  # padding: nobody reads what comes of it
        [1, 1, 1, 0, 1],
    ]


def test_every_row_keeps_a_token_of_its_own_even_where_rows_are_equal():
    layout = packed.pack(torch.tensor([[7, 8, 9], [7, 8, 9]]), [3, 3])
    assert (layout.shared, layout.input_ids.tolist()) == (2, [[7, 8, 9, 9]])


def test_rows_that_begin_differently_are_only_put_one_after_another():
    layout = packed.pack(torch.tensor([[7, 8, 0], [6, 8, 9]]), [2, 3])
    assert (layout.shared, layout.input_ids.tolist()) == (0, [[7, 8, 6, 8, 9]])
    assert layout.ends.tolist() == [0, 2, 5]


# ---- the same numbers ----


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_plain_way(family, attention, shared):
    model = make_tuned(family, attention=attention)
    batch = make_batch(shared)
    plain, fast = learn(model, OFF, batch), learn(model, AUTO, batch)
    assert gap(fast[0], plain[0]) < 1e-6
    assert gap(fast[1], plain[1]) < 2e-5  # tiny norms enlarge rounding; exact ones are below


@pytest.mark.parametrize("shared", [0, 5])
def test_the_written_out_gradient_of_attention_is_that_of_torch(shared):
    batch = make_batch(shared)
    lengths = batch["attention_mask"].sum(1).tolist()
    layout = packed.pack(batch["input_ids"], lengths)
    torch.manual_seed(0)
    count = layout.input_ids.shape[1]
    given = [torch.randn(count, heads, 8, dtype=torch.float64) for heads in (6, 2, 2)]
    weigh = torch.randn(count, 6, 8, dtype=torch.float64)

    def run(attention: Any) -> list[torch.Tensor]:
        leaves = [part.clone().requires_grad_() for part in given]
        out = attention(*leaves, layout, 0.3)
        return [out.detach(), *torch.autograd.grad((out * weigh).sum(), leaves)]

    pairs = zip(run(packed._Attention.apply), run(packed._attend_by_sdpa), strict=True)
    assert max(gap(one, other) for one, other in pairs) < 1e-12


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp"])
def test_the_written_out_gradients_of_layers_are_those_of_torch(name):
    model = make_tuned("qwen2").double()
    module = model.get_base_model().model.layers[0].get_submodule(name)
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 32, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        x = tokens.clone().requires_grad_()
        out = module(x)
        trained = [p for p in module.parameters() if p.requires_grad]
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *trained])]

    plain = run()
    with speed.fast_layers_of(model):
        assert "forward" in vars(module)
        fast = run()
    assert max(gap(one, other) for one, other in zip(fast, plain, strict=True)) < 1e-12


def test_in_bfloat16_they_differ_as_much_as_bfloat16_differs_from_float32():
    batch = make_batch()
    exact = learn(make_tuned(), OFF, batch)
    model = make_tuned(dtype=torch.bfloat16)
    plain, fast = learn(model, OFF, batch), learn(model, AUTO, batch)
    assert gap(fast[0], exact[0]) < 1.5 * gap(plain[0], exact[0]) < 0.02
    assert gap(fast[1], exact[1]) < 1.5 * gap(plain[1], exact[1]) < 0.1


def test_activations_computed_twice_give_the_same():
    model = make_tuned()
    batch = make_batch()
    once = learn(model, AUTO, batch)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    twice = learn(model, AUTO, batch)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1], twice[1])


@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt", "rslora", "full", "freeze"])
def test_other_kinds_of_adapters_learn_the_same_with_it(kind):
    model = make_tuned(kind=kind)
    batch = make_batch()
    plain, fast = learn(model, OFF, batch), learn(model, AUTO, batch)
    assert gap(fast[0], plain[0]) < 1e-6
    assert gap(fast[1], plain[1]) < 2e-5


def test_an_adapter_that_is_switched_off_meanwhile_leaves_the_base_model():
    model = make_tuned()
    batch = make_batch()
    with torch.no_grad(), model.disable_adapter():
        plain, _ = answer_losses(model, batch)
        with speed.fast_training(model, AUTO):
            fast, _ = answer_losses(model, batch)
    assert gap(fast, plain) < 1e-6


def test_rows_that_are_not_packed_can_still_be_put_through_meanwhile():
    model = make_tuned().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        with speed.fast_training(model, AUTO):
            fast = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            written = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert gap(fast, plain) < 1e-6
    assert torch.equal(written, model.generate(input_ids=ids, max_new_tokens=3, do_sample=False))


# ---- what it leaves alone ----


def names_of_fast(model: Any) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


def is_packed(model: Any) -> bool:
    batch = make_batch()
    inputs = (batch["input_ids"], batch["attention_mask"])
    return packed.layout_for(model.get_base_model(), *inputs) is not None


def test_everything_is_put_back():
    model = make_tuned()
    with speed.fast_training(model, AUTO):
        assert names_of_fast(model) == {"Linear", "LlamaMLP", "LlamaRMSNorm"}
        assert is_packed(model)
    assert names_of_fast(model) == set()
    assert not is_packed(model)
    assert model.get_base_model().config._attn_implementation == "eager"


def test_off_is_plain():
    model = make_tuned()
    with speed.fast_training(model, OFF):
        assert (names_of_fast(model), is_packed(model)) == (set(), False)


def test_where_chance_plays_a_part_rows_keep_beginnings_of_their_own():
    dropping = make_tuned(lora_dropout=0.1)
    with speed.fast_training(dropping, AUTO):
        assert (names_of_fast(dropping), is_packed(dropping)) == ({"LlamaRMSNorm"}, False)
    noisy = make_tuned()
    with speed.fast_training(noisy, TrainSettings(neftune_alpha=5.0)):
        assert not is_packed(noisy)


def test_a_model_that_mixes_tokens_by_other_means_is_not_packed():
    model = make_tuned()
    embedding = model.get_base_model().get_input_embeddings()
    embedding.register_forward_hook(lambda _, __, out: out + out.roll(1, dims=1))
    assert not speed.can_pack(model.get_base_model())


def test_rows_past_a_sliding_window_are_not_packed():
    model = make_tuned("mistral")
    long = torch.ones((2, 40), dtype=torch.long)
    with speed.fast_training(model, AUTO):
        assert is_packed(model)
        assert packed.layout_for(model.get_base_model(), long, long) is None


def test_a_part_whose_twin_says_otherwise_stays_as_it_is():
    class ShiftedRMSNorm(transformers.models.llama.modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + hidden_states

    model = make_tuned()
    layer = model.get_base_model().model.layers[0]
    layer.input_layernorm = ShiftedRMSNorm(32)
    layer.input_layernorm.requires_grad_(False)
    with speed.fast_training(model, AUTO):
        assert "forward" not in vars(layer.input_layernorm)
        assert "forward" in vars(layer.post_attention_layernorm)


def test_a_shared_beginning_is_computed_once():
    model = attach_adapter(make_model(vocab_size=300), AdapterSettings(r=4)).train()
    batch = collate(make_examples(), pad_id=256, device=torch.device("cpu"))
    seen: list[int] = []
    embedding = model.get_base_model().get_input_embeddings()
    embedding.register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    chosen = batch["labels"] != IGNORE
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain = hidden_at(model, chosen, **inputs)
    with speed.fast_training(model, AUTO):
        seen.clear()
        fast = hidden_at(model, chosen, **inputs)
    lengths = [len(example.input_ids) for example in make_examples()]
    layout = packed.pack(batch["input_ids"], lengths)
    assert seen == [speed_rules.round_up(sum(lengths) - (len(lengths) - 1) * layout.shared)]
    assert layout.shared == 14  # the user's header and 'What is '
    assert gap(fast, plain) < 1e-6


def test_attaching_an_adapter_to_a_plain_model_loads_no_compiler():
    code = (
        "import sys, torch\n"
        "from tests.conftest import make_model\n"
        "from sftkit.adapter import attach_adapter\n"
        "from sftkit.settings import AdapterSettings\n"
        "attach_adapter(make_model(vocab_size=300), AdapterSettings(r=4))\n"
        "print('bitsandbytes' in sys.modules, 'torch._inductor.compile_fx' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]
