"""A recipe's tokenizer and chat template together, after every check that needs no row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.arguments import saved_arguments, wrong_name
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import encode
from hybrid_ft.finetune.data.tokens.reasoning import AS_GIVEN, Thoughts
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.data.tokens.vocabulary import check_fits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe

_TEMPLATES = Path(__file__).parent
_MOST_TEMPLATE_BYTES = 2**20
_OWN = "(the tokenizer's own)"
NO_TEMPLATE = "none, plain text"
_STAND_IN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""In a template's place where all rows are plain text, which none renders."""


@dataclass(frozen=True)
class Encoder:
    """What turns conversations into tokens: a tokenizer, its control tokens, a chat template, and what becomes of
    thoughts."""

    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    template: ChatTemplate
    thoughts: Thoughts = AS_GIVEN

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """The encoder of a recipe. Raises InputError where tokenizer, model, template or sample prompts do not fit."""
        check_fits(recipe.model, tokenizer)
        control = ControlTokens(tokenizer)
        if recipe.model.chat_template is None and not tokenizer.chat_template and recipe.data.plain_text:
            text, name = _STAND_IN, NO_TEMPLATE
            if recipe.evaluate.samples:
                raise InputError(
                    "evaluate.samples: the tokenizer has no chat template to ask them with; leave them out"
                )
        else:
            text, name = _template_text(recipe.model.chat_template, tokenizer)
        arguments = recipe.model.chat_template_kwargs
        if arguments is None:
            arguments = saved_arguments(tokenizer)
        elif wrong := wrong_name(arguments, text, name):
            raise InputError(f"model.chat_template_kwargs.{wrong}")
        thoughts = Thoughts(recipe.data.reasoning, recipe.data.train_empty_thoughts)
        encoder = cls(tokenizer, control, ChatTemplate(text, name, tokenizer, control, arguments), thoughts)
        encoder._check_samples(recipe.evaluate.samples)
        return encoder

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """With the tokenizer's own chat template. Raises InputError where it has none, or none that can be used."""
        try:
            text = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        except ValueError:
            text = ""  # several, and none of them the default
        if not text or not isinstance(text, str):
            raise InputError(f"{tokenizer.name_or_path}: its tokenizer has no chat template, so it cannot be asked")
        control = ControlTokens(tokenizer)
        return cls(tokenizer, control, ChatTemplate(text, _OWN, tokenizer, control, saved_arguments(tokenizer)))

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end an assistant's turn, the last turn's first."""
        return self.template.eos_token_ids

    def shown(self, ids: list[int]) -> str:
        """Tokens as text to look at."""
        return self.control.shown(ids, self.tokenizer)

    def header_tokens(self) -> int:
        """How many tokens the template writes to ask for an answer."""
        question = [{"role": "user", "content": "a"}]
        plain, asking = self.template.render(question), self.template.render(question, ask=True)
        if not asking.startswith(plain):
            return 1
        return len(self.control.encode([self.control.mark(asking.removeprefix(plain))])[0].ids)

    def _check_samples(self, samples: list[str]) -> None:
        """Refuse a prompt of the recipe that the chat template cannot render, before a model is asked it."""
        for index, sample in enumerate(samples):
            turns = [{"role": "user", "content": sample}, {"role": "assistant", "content": "x"}]
            (encoded,) = encode([Conversation(turns)], self.template, self.control)
            if isinstance(encoded, BadRow):
                raise InputError(f"evaluate.samples.{index}: {encoded}")


def _template_text(wanted: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A chat template's text and what to call it: the recipe's, or the tokenizer's own."""
    if wanted is None:
        fix = "set model.chat_template: olmo-instruct, or a .jinja file; for plain text, format: text on every source"
        try:
            text = tokenizer.get_chat_template()
        except ValueError:
            has = "has several and no default" if isinstance(tokenizer.chat_template, dict) else "has none"
            raise InputError(f"model.chat_template: the tokenizer {has}; {fix}") from None
        if not isinstance(text, str):
            raise InputError("model.chat_template: the tokenizer's own must be a string; name a .jinja file")
        return text, _OWN
    shipped = _TEMPLATES / f"{wanted}.jinja"
    path = shipped if shipped.is_file() else Path(wanted)
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_TEMPLATE_BYTES + 1)
        if len(raw) > _MOST_TEMPLATE_BYTES:
            size = f"{_MOST_TEMPLATE_BYTES // 1024} kB"
            raise InputError(f"model.chat_template: {wanted} is larger than {size}; a chat template is a short program")
        return raw.decode("utf-8-sig"), wanted
    except OSError as error:
        raise InputError(f"model.chat_template: {wanted} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"model.chat_template: {wanted} is not UTF-8; save the file as UTF-8") from None
