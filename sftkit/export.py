"""A finished run as something to serve or share: adapter, merged weights, GGUF, hub repository.

Whatever is written is read back as a user would read it, and has to answer like what was tested
(`parity`). An adapter trained on a quantized base is merged into the unquantized one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftkit import adapter_files, model
from sftkit.catalog import fetch_model
from sftkit.chat import Messages
from sftkit.errors import ModelError
from sftkit.gate_against import load_kept
from sftkit.gguf_write import Kind, write_gguf
from sftkit.parity import LIMITS, Parity, Speaker, check_parity
from sftkit.recipe import recipe_from_dict
from sftkit.report.card import plain, render_card
from sftkit.report.redact import redact
from sftkit.serving import (
    Server,
    ServingFinding,
    lint_serving,
    ollama_modelfile,
    vllm_command,
)
from sftkit.settings import ModelSettings, Recipe, to_plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.catalog import ModelSource
    from sftkit.gate_against import Kept

Target = Literal["adapter", "merged", "gguf"]
Precision = Literal["float32", "bfloat16"]
PROMPTS = 24
"""Test conversations that an export is compared on."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote, and how like the tested model it is.

    Attributes:
        to: adapter, merged or gguf.
        folder: Where it lies.
        files: Name and bytes of each file.
        parity: The comparison with what was tested.
        serving: What the server asked about would stumble on; empty if none was asked about.
    """

    to: Target
    folder: Path
    files: tuple[tuple[str, int], ...]
    parity: Parity
    serving: tuple[ServingFinding, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether it answers alike and the server takes it."""
        return not self.parity.faults and all(one.severity != "error" for one in self.serving)


def export_run(
    run_folder: str | Path,
    out: str | Path,
    *,
    to: Target = "merged",
    precision: Precision = "float32",
    gguf: Kind = "f16",
    check: Server | None = None,
    prompts: int = PROMPTS,
) -> Exported:
    """Export a finished chat run, and compare what was written with what was tested.

    Args:
        run_folder: The run, with its run.json and adapter.
        out: A folder that is not there yet, or empty.
        to: adapter (with its tokenizer and a card), merged (safetensors), or gguf (one file).
        precision: Type of merged weights.
        gguf: Type of the weights in a GGUF file.
        check: A server whose rules the export is held against.
        prompts: Test conversations to compare on.

    Returns:
        What was written. Files whose answers differ are kept, and `is_good` is False.

    Raises:
        ModelError: The run has no such export, or the folder is in use.
        AdapterError: The method cannot become part of the weights.
        RecordError: The folder holds no run.
    """
    kept, out = load_kept(run_folder), Path(out)
    recipe = recipe_from_dict(to_plain(kept.record.recipe))
    _refuse(kept, recipe, out)
    folder = Path(run_folder) / "adapter"
    source = fetch_model(recipe.model)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    conversations = _conversations(kept, prompts)
    base_id = kept.record.environment.base_fingerprint

    exact = dataclasses.replace(recipe.model, quantization="none", dtype="float32")
    partial = out.with_name(f".writing-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    name = recipe.name
    if to == "adapter":
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        tokenizer.save_pretrained(partial)
    else:
        merged = _merged(exact, folder, source, base_id)
        if to == "gguf":
            write_gguf(merged, tokenizer, partial / f"{name}.{gguf}.gguf", kind=gguf)
        else:
            merged.to(model.pick_dtype(dataclasses.replace(exact, dtype=precision)).dtype)
            with model.without_loading_bar():
                merged.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        del merged

    lives = dataclasses.replace(recipe.model, dtype="float32")
    base = model.load_model(lives, source=source)
    tested = adapter_files.load_adapter(base, folder, base_fingerprint=base_id)
    served = _read_back(partial, to, exact, source)
    limits = LIMITS[gguf if to == "gguf" else precision if to == "merged" else "float32"]
    parity = check_parity(
        Speaker(model=tested, tokenizer=tokenizer),
        served,
        conversations,
        limits,
        system=recipe.data.system,
    )
    config = _adapter_config(folder)
    serving = () if check is None else _lint(config, check, to, tokenizer)
    _write_papers(partial, kept, parity, to, name=f"{name}.{gguf}.gguf", tokenizer=tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    out.rmdir()
    partial.rename(out)
    return Exported(to=to, folder=out, files=_listed(out), parity=parity, serving=serving)


def _refuse(kept: Kept, recipe: Recipe, out: Path) -> None:
    if recipe.data.task != "chat" or kept.record.learned.labels is not None:
        raise ModelError(
            f"A run of task {recipe.data.task!r} is used with its own head and is not exported "
            "here; its folder adapter/ loads with sftkit.load_adapter."
        )
    if not kept.record.training.steps:
        raise ModelError("This record is of a model that was trained elsewhere; export it there.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is there already. Give another folder with --out.")


def _conversations(kept: Kept, most: int) -> list[Messages]:
    """Take test questions with what the tuned model answered, spread over the whole test."""
    answers = [one for one in kept.answers or kept.record.answers if one.split == "test"]
    answers = answers or list(kept.record.answers)
    step = max(1, len(answers) // most)
    return [
        [
            {"role": "user", "content": one.question},
            {"role": "assistant", "content": one.tuned or one.expected},
        ]
        for one in answers[::step][:most]
    ]


def _merged(settings: ModelSettings, folder: Path, source: ModelSource, base_id: str) -> Any:
    base = model.load_model(settings, source=source)
    return adapter_files.merge_adapter(
        adapter_files.load_adapter(base, folder, base_fingerprint=base_id)
    )


def _read_back(folder: Path, to: Target, exact: ModelSettings, source: ModelSource) -> Speaker:
    """Load what was written as somebody else would."""
    if to == "adapter":
        base = model.load_model(exact, source=source)
        from transformers import AutoTokenizer

        return Speaker(
            model=adapter_files.load_adapter(base, folder),
            tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )
    place = folder if to == "merged" else next(folder.glob("*.gguf"))
    settings = dataclasses.replace(exact, name=str(place), revision=None)
    own = fetch_model(settings)
    return Speaker(
        model=model.load_model(settings, source=own),
        tokenizer=model.load_tokenizer(settings, source=own),
    )


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _lint(
    config: dict[str, Any], server: Server, to: Target, tokenizer: PreTrainedTokenizerBase
) -> tuple[ServingFinding, ...]:
    return lint_serving(config if to == "adapter" else {}, server, tokenizer=tokenizer)


def _write_papers(
    folder: Path,
    kept: Kept,
    parity: Parity,
    to: Target,
    *,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write card, parity and how to start a server."""
    record = kept.record
    recipe = recipe_from_dict(to_plain(record.recipe))
    base = record.environment.base
    card = render_card(record)
    if to != "adapter":
        front, _, body = card[4:].partition("\n---\n")
        front = front.replace("library_name: peft", "library_name: transformers")
        front = front.replace("base_model_relation: adapter", "base_model_relation: finetune")
        card = f"---\n{front}\n---\n{body}"
    card += f"\n## How like the tested model this is\n\n{plain(parity.sentence)}\n"
    (folder / "README.md").write_text(redact(card), encoding="utf-8")
    (folder / "parity.json").write_text(
        json.dumps(to_plain(parity), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if to == "gguf":
        text = ollama_modelfile(name, tokenizer, system=recipe.data.system)
        (folder / "Modelfile").write_text(redact(text), encoding="utf-8")
        return
    config = _adapter_config(folder)
    command = vllm_command(".")
    if to == "adapter" and config.get("peft_type") == "LORA":
        command = vllm_command(
            base.split(" ")[0], name=recipe.name, folder=".", rank=int(config["r"])
        )
    (folder / "serve-vllm.sh").write_text(redact(command), encoding="utf-8")


def _listed(folder: Path) -> tuple[tuple[str, int], ...]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def push_to_hub(folder: str | Path, repo: str, *, dry_run: bool, private: bool = True) -> list[str]:
    """Send an exported folder to a repository of the Hugging Face hub.

    Args:
        folder: As `export_run` wrote it.
        repo: owner/name.
        dry_run: Whether only to say what would be sent.
        private: Whether a new repository is for its owner alone.

    Returns:
        What is sent, one line a file.

    Raises:
        ModelError: A file holds a secret, an address or a home folder.
    """
    folder = Path(folder)
    files = _listed(folder)
    _refuse_secrets(folder, [name for name, _ in files])
    lines = [f"{name} ({size:,} bytes)" for name, size in files]
    if not dry_run:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Fine-tuned and tested with sftkit"
        )
    return lines


def _refuse_secrets(folder: Path, names: Sequence[str]) -> None:
    vocabulary = {"tokenizer.json", "vocab.json", "merges.txt"}  # not written by anybody here
    for name in names:
        path = folder / name
        if path.suffix in {".safetensors", ".gguf", ".png"} or path.name in vocabulary:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if redact(text) != text:
            raise ModelError(
                f"{name} holds what looks like a secret, a mail address or a home folder, so "
                "nothing was sent. Take it out, and look at the recipe it came from."
            )
