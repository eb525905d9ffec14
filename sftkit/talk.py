"""Talk to a run: the base and the tuned model answer the same words, side by side.

One model is in memory. The adapter is switched off for each token of the base and on for each
token of the tuned model, so both answers grow at the same time. Each of the two remembers what it
said itself. Words are chosen greedily, as in the tests: the same question gets the same answer.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftkit import adapter, adapter_files, model
from sftkit.catalog import fetch_model
from sftkit.chat import encode_prompt, end_tokens
from sftkit.errors import ModelError
from sftkit.forward import adds_virtual_tokens, last_logits_only, precision_of, scoring, unwrapped
from sftkit.recipe import recipe_from_dict
from sftkit.records import load_run
from sftkit.settings import to_plain
from sftkit.show import NEWLINE, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Name = Literal["base", "tuned"]
MAX_NEW_TOKENS = 128
"""Longest answer, in tokens."""
_CUT = "\N{REPLACEMENT CHARACTER}"  # what a character reads as whose last bytes are still to come


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one of the two has said so far.

    Attributes:
        speaker: base or tuned.
        text: Its answer so far; control tokens left out.
        is_done: Whether the answer is complete.
        ended: Whether the model ended its turn itself; it ran into the longest answer otherwise.
    """

    speaker: Name
    text: str
    is_done: bool = False
    ended: bool = False


class Talk:
    """A conversation with the base and with the tuned model.

    Attributes:
        title: What talks: the run and its base.
        notes: What a reader should know, e.g. that the base was loaded a second time.
        max_new_tokens: Longest answer, in tokens.
    """

    def __init__(
        self,
        tuned: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base: Any = None,
        system: str | None = None,
        title: str = "",
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        """Put two speakers together; `open_talk` is the way in.

        Args:
            tuned: A model with an adapter.
            tokenizer: Its tokenizer.
            base: The base model, where switching the adapter off does not bring it back; None
                switches the adapter off.
            system: Words before every conversation.
            title: What talks.
            max_new_tokens: Longest answer, in tokens.
        """
        self.title, self.max_new_tokens = title, max_new_tokens
        self.notes: list[str] = []
        self._tokenizer, self._system = tokenizer, system
        self._ends = end_tokens(tokenizer)
        self._voices: dict[Name, tuple[Any, Callable[[], AbstractContextManager[Any]]]] = {
            "base": (
                tuned if base is None else base,
                (lambda: adapter.adapter_off(tuned)) if base is None else nullcontext,
            ),
            "tuned": (tuned, nullcontext),
        }
        self._said: dict[Name, list[dict[str, str]]] = {"base": [], "tuned": []}

    @property
    def turns(self) -> int:
        """Questions asked in this conversation."""
        return len(self._said["base"]) // 2

    def begin_anew(self) -> None:
        """Forget the conversation so far."""
        for messages in self._said.values():
            messages.clear()

    def ask(self, question: str) -> Iterator[Piece]:
        """Ask both; give what they say while they say it.

        A question whose answers are not read to the end is forgotten.

        Args:
            question: The user's words.

        Yields:
            One piece per speaker and token, the last of each with `is_done`.

        Raises:
            ModelError: The question is empty, or the conversation fills the model's window.
        """
        if not question.strip():
            raise ModelError("The question is empty. Type some words.")
        asked = {"role": "user", "content": question}
        speaking = {name: self._speak(name, asked) for name in self._voices}
        answers: dict[Name, str] = {}
        while speaking:
            for name in list(speaking):
                piece = next(speaking[name])
                yield piece
                if piece.is_done:
                    answers[name] = piece.text
                    del speaking[name]
        for name, answer in answers.items():
            self._said[name] += [asked, {"role": "assistant", "content": answer}]

    def answer(self, question: str) -> dict[Name, str]:
        """Ask both and wait; give the two answers."""
        return {piece.speaker: piece.text for piece in self.ask(question)}

    def _speak(self, name: Name, asked: dict[str, str]) -> Iterator[Piece]:
        import torch

        speaker, on_or_off = self._voices[name]
        messages = [*self._said[name], asked]
        ids = list(encode_prompt(messages, self._tokenizer, system=self._system))
        window = getattr(unwrapped(speaker).config, "max_position_embeddings", None)
        if window is not None and len(ids) + self.max_new_tokens > window:
            raise ModelError(
                f"The conversation has {len(ids):,} tokens; with an answer of "
                f"{self.max_new_tokens:,} it does not fit the model's {window:,}. Begin a new one."
            )
        # Virtual tokens go in front of every input, so those methods read all words each time.
        keeps = not adds_virtual_tokens(speaker)
        given, past, written = ids, None, list[int]()
        while True:
            with (
                scoring(speaker),
                precision_of(speaker),
                last_logits_only(speaker),
                on_or_off(),
            ):
                told = speaker(
                    input_ids=torch.tensor([given], device=unwrapped(speaker).device),
                    past_key_values=past,
                    use_cache=keeps,
                )
            token = int(told.logits[0, -1].argmax())
            past = told.past_key_values if keeps else None
            ended = token in self._ends
            if not ended:
                written.append(token)
            given = [token] if keeps else ids + written
            done = ended or len(written) == self.max_new_tokens
            yield Piece(speaker=name, text=self._words(written, done), is_done=done, ended=ended)
            if done:
                return

    def _words(self, ids: list[int], is_done: bool) -> str:
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return text.strip() if is_done else text.lstrip().rstrip(_CUT)


def open_talk(
    run_folder: str | Path, *, strength: float = 1.0, max_new_tokens: int = MAX_NEW_TOKENS
) -> Talk:
    """Load a finished chat run to talk to.

    Args:
        run_folder: The run, with its run.json and adapter.
        strength: Of the adapter: 1 is as trained, 0 is the base.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        ModelError: The run has no conversation, or was trained elsewhere.
        AdapterError: The adapter is not there or is another's, or cannot be weakened.
        RecordError: The folder holds no run.
    """
    record = load_run(run_folder)
    recipe = recipe_from_dict(to_plain(record.recipe))
    if recipe.data.task != "chat" or record.learned.labels is not None:
        raise ModelError(
            f"A run of task {recipe.data.task!r} sorts texts and does not talk. Its answers are in "
            "the report; its adapter loads with sftkit.load_adapter."
        )
    if not record.training.steps:
        raise ModelError("This record is of a model that was trained elsewhere; talk to it there.")
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens}; an answer takes 1 or more.")
    source = fetch_model(recipe.model)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    tuned = adapter_files.load_adapter(
        model.load_model(recipe.model, source=source),
        Path(run_folder) / "adapter",
        base_fingerprint=record.environment.base_fingerprint,
    )
    base, notes = None, []
    if not adapter.kind_of(tuned).off_equals_base:
        base = model.load_model(recipe.model, source=source)
        notes.append(
            f"adapter.kind={recipe.adapter.kind} changes the base, so the base is in memory a "
            "second time."
        )
    if strength != 1.0:
        adapter.weaken_adapter(tuned, strength)
        notes.append(f"The adapter runs at {strength:g} of its strength.")
    talk = Talk(
        tuned,
        tokenizer,
        base=base,
        system=recipe.data.system,
        title=f"{recipe.name} on {recipe.model.name}",
        max_new_tokens=max_new_tokens,
    )
    talk.notes = notes
    return talk


class TalkWidget:
    """A box to ask in and two columns that fill while both answer.

    Displays itself as the last value of a cell.

    Attributes:
        talk: The conversation.
        question: The text box.
        ask: The button; `ask.click()` asks what stands in the box.
        anew: The button that begins a new conversation.
        columns: What is shown, by speaker.
        widget: The ipywidgets box.
    """

    def __init__(self, talk: Talk) -> None:
        """Put the pieces together."""
        import ipywidgets

        self.talk = talk
        wide = ipywidgets.Layout(width="50%", padding="0 .6em")
        self.columns = {name: ipywidgets.HTML(layout=wide) for name in ("base", "tuned")}
        self.question = ipywidgets.Text(
            placeholder="Ask both …", layout=ipywidgets.Layout(width="100%")
        )
        self.ask = ipywidgets.Button(description="Ask", button_style="primary")
        self.anew = ipywidgets.Button(description="New conversation")
        self.ask.on_click(lambda _: self._ask())
        self.anew.on_click(lambda _: self._begin())
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.question, self.ask, self.anew]),
                ipywidgets.HBox(list(self.columns.values())),
            ]
        )
        self._earlier = {"base": "", "tuned": ""}
        self._show({})

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    def _begin(self) -> None:
        self.talk.begin_anew()
        self._earlier = {"base": "", "tuned": ""}
        self._show({})

    def _ask(self) -> None:
        question = self.question.value
        self.ask.disabled = True
        texts: dict[str, str] = {}
        try:
            for piece in self.talk.ask(question):
                texts[piece.speaker] = piece.text
                self._show(texts, question)
        except ModelError as error:
            self._show({name: str(error) for name in self.columns}, question)
            return
        finally:
            self.ask.disabled = False
        for name, text in texts.items():
            self._earlier[name] += _turn_html(question, text)
        self.question.value = ""

    def _show(self, texts: dict[str, str], question: str = "") -> None:
        for name, column in self.columns.items():
            # What a model writes is never markup: a script in it is shown, not run.
            now = _turn_html(question, texts[name]) if name in texts else ""
            column.value = f"<b>{_HEADINGS[name]}</b>{self._earlier[name]}{now}"


_HEADINGS = {"base": "Base", "tuned": "Tuned"}


def _turn_html(question: str, answer: str) -> str:
    asked, said = (
        html.escape(visible(text, keep_newlines=True)).replace(f"{NEWLINE}\n", "<br>")
        for text in (question, answer)
    )
    return (
        f"<p style='color:#666;margin:.6em 0 0'>{asked}</p>"
        f"<p style='margin:.1em 0 0;overflow-wrap:anywhere'>{said}</p>"
    )
