"""What a server will do with an adapter: what it refuses, what it would get wrong, how to start it.

No server is started here. The rules are those of vLLM's `lora/peft_helper.py` and `config/lora.py`
and of llama.cpp's `convert_lora_to_gguf.py`, as they stood in August 2026.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sftkit.chat import render_chat
from sftkit.errors import EncodeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Server = Literal["vllm", "llama.cpp"]
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be; 16 if nothing is said."""
_VLLM_DEFAULT_RANK = 16
_EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"}
_NOT_RUN = "written by rule, not run here"


@dataclass(frozen=True, kw_only=True)
class ServingFinding:
    """One thing a server would stumble on.

    Attributes:
        severity: error (it refuses, or answers wrongly) or warning (it needs an option or a look).
        what: What it is.
        fix: What to do about it.
    """

    severity: Literal["error", "warning"]
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what} {self.fix}"


_MERGE = "Export it merged instead: sftkit export RUN --to merged."


def lint_serving(
    config: Mapping[str, Any], server: Server, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[ServingFinding, ...]:
    """Say what a server would refuse or get wrong about an adapter.

    Args:
        config: Its adapter_config.json; empty for a merged model.
        server: vllm or llama.cpp.
        tokenizer: With the chat template it was trained with.

    Returns:
        Findings, errors first; empty if the rules see nothing.
    """
    found = _of_adapter(config, server) if config else []
    if tokenizer is not None:
        found += _of_template(tokenizer, server)
    return tuple(sorted(found, key=lambda one: one.severity != "error"))


def _of_adapter(config: Mapping[str, Any], server: Server) -> list[ServingFinding]:
    found = []
    method = str(config.get("peft_type", ""))
    if method != "LORA":
        found.append(_error(f"{server} serves adapters of LoRA only; this is {method}.", _MERGE))
        return found
    if config.get("use_dora"):
        found.append(_error(f"{server} does not apply the magnitudes of DoRA.", _MERGE))
    saved = [str(name) for name in config.get("modules_to_save") or []]
    if saved:
        found.append(
            _error(f"{server} ignores or refuses whole modules ({', '.join(saved)}).", _MERGE)
        )
    targets = config.get("target_modules") or []
    named = {
        str(one).rpartition(".")[2] for one in ([targets] if isinstance(targets, str) else targets)
    }
    if embeddings := sorted(named & _EMBEDDINGS):
        found.append(
            _error(f"{server} may not apply an update of {', '.join(embeddings)}.", _MERGE)
        )
    if str(config.get("bias", "none")) != "none":
        found.append(_error(f"{server} does not apply trained biases.", _MERGE))
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if patterns:
        found.append(
            _error(
                f"{server} takes one rank and scale for all layers ({', '.join(patterns)}).", _MERGE
            )
        )
    return found + (_for_vllm(config) if server == "vllm" else _for_llama_cpp(config))


def _for_vllm(config: Mapping[str, Any]) -> list[ServingFinding]:
    rank = int(config.get("r", 0))
    if rank > VLLM_RANKS[-1]:
        most = VLLM_RANKS[-1]
        return [_error(f"Rank {rank} is above {most}, the largest that vLLM serves.", _MERGE)]
    if rank > _VLLM_DEFAULT_RANK:
        need = vllm_rank(rank)
        return [
            ServingFinding(
                severity="warning",
                what=f"Rank {rank} is above vLLM's default limit of {_VLLM_DEFAULT_RANK}.",
                fix=f"Start it with --max-lora-rank {need}.",
            )
        ]
    return []


def _for_llama_cpp(config: Mapping[str, Any]) -> list[ServingFinding]:
    if not config.get("use_rslora"):
        return []
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return [
        _error(
            f"llama.cpp scales an update by alpha / rank ({alpha / rank:g}); rsLoRA was trained "
            f"with alpha / sqrt(rank) ({alpha / rank**0.5:g}).",
            "Export it merged or as gguf, where the scale is part of the weights.",
        )
    ]


def _of_template(tokenizer: PreTrainedTokenizerBase, server: Server) -> list[ServingFinding]:
    if not tokenizer.chat_template:
        return [_error("There is no chat template, so each client makes up its own.", "Save one.")]
    if system := injected_system(tokenizer):
        return [
            ServingFinding(
                severity="warning",
                what=f"The template puts a system prompt of its own in front: {system!r}.",
                fix=f"Keep the template that lies beside the weights; {server} has to render it.",
            )
        ]
    return []


def _error(what: str, fix: str) -> ServingFinding:
    return ServingFinding(severity="error", what=what, fix=fix)


def vllm_rank(rank: int) -> int:
    """Give the least limit of vLLM that takes a rank."""
    return next(one for one in VLLM_RANKS if one >= rank)


def vllm_command(base: str, *, name: str = "", folder: str = "", rank: int = 0) -> str:
    """Write the command that serves a merged model, or an adapter on its base.

    Args:
        base: The merged model's folder, or the base model's hub id or folder.
        name: What the adapter is called in requests; empty for a merged model.
        folder: The adapter's folder.
        rank: Its rank.
    """
    words = ["vllm", "serve", base]
    if name:
        words += ["--enable-lora", "--max-lora-rank", str(vllm_rank(rank))]
        words += ["--lora-modules", f"{name}={folder}"]
    return f"# {_NOT_RUN}\n{shlex.join(words)}\n"


def ollama_modelfile(file: str, tokenizer: PreTrainedTokenizerBase, *, system: str | None) -> str:
    """Write a Modelfile for Ollama.

    Args:
        file: The GGUF file beside it.
        tokenizer: With the chat template of training; one of the ChatML kind is written in Ollama's
            own language, of others the file has to be trusted.
        system: System prompt of the run.
    """
    lines = [f"# {_NOT_RUN}", f"FROM ./{file}"]
    system = system if system is not None else injected_system(tokenizer)
    if _is_chatml(tokenizer):
        lines.append(
            'TEMPLATE """{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
            '{{ end }}<|im_start|>assistant\n"""'
        )
        lines.append('PARAMETER stop "<|im_end|>"')
    else:
        lines.append(
            "# The chat template is in the GGUF file; look at a rendered prompt before use."
        )
    if system:
        quoted = system.replace('"""', '" " "')
        lines.append(f'SYSTEM """{quoted}"""')
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def injected_system(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the system prompt that a ChatML template puts in by itself; empty if none."""
    start = "<|im_start|>system\n"
    try:
        text = render_chat([{"role": "user", "content": "Q"}], tokenizer)
    except EncodeError:
        return ""
    return text[len(start) :].partition("<|im_end|>")[0] if text.startswith(start) else ""


def _is_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    plain = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
    try:
        return render_chat(turns, tokenizer, for_answer=True) == plain + "<|im_start|>assistant\n"
    except EncodeError:
        return False
