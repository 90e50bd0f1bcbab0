"""Which characters a chat template writes itself, and for which turn.

A template is a program; nothing in its output says where a message begins. So every text of a conversation is replaced
by a name that occurs nowhere else, and the template is run on that: what comes out between the names is the template's
own, and the names show where each turn lies. The same plan serves all conversations of that shape. Each row is also
rendered as it is, unless the template looks at no text (``unread``), and must equal the plan filled in, letter by
letter; a row for which it does not, or whose turns cannot be told apart, is refused.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import render_jinja_template

from hybrid_ft.errors import InputError, one_line, short
from hybrid_ft.finetune.data.limits import MEMORY, RENDER_ERRORS, SECONDS, TookTooLong, limited
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.asked import Openings
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.reasoning import BEGIN, END, Habits
from hybrid_ft.finetune.data.tokens.skeleton import Skeleton, skeleton_of
from hybrid_ft.finetune.data.tokens.unread import Unread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_PLANS = 4096
_MOST_VARIANTS = 64
RUNAWAY = "runaway chat template"
"""The kind of a row on which a template ran into one of these limits."""

_NAMED_TOKEN = re.compile(r"<\|[^\s<>|]{1,40}\|>")
_REASONING_FIELD = re.compile(r"""(?:\.|['"])(reasoning_content|thinking|reasoning)\b""")
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Place:
    """A position in a plan: in which literal, and how many characters into it, as written and with renamed tokens."""

    literal: int
    plain: int
    marked: int


@dataclass(frozen=True)
class Span:
    """One assistant turn: from its first character to learn to the token that ends it, which is learned as well.

    ``message``: the turn's index in its conversation. ``opening``: what asking for the turn adds behind its
    header, None where the template asks after other text than the row's. ``tail``: the template's own text,
    control tokens renamed, from its last control token before ``start`` up to there, and where in the literal it
    begins; None without one.
    """

    start: Place
    end: Place
    message: int
    opening: str | None
    tail: tuple[str, int] | None


@dataclass
class Plan:
    """Literals with slots between them: ``literals[0] slots[0] literals[1] ...``; a slot is (text's number, escapes).
    ``unread``: the template writes turns of these roles like this whatever they say, since it looks at no text."""

    literals: list[str]
    marked: list[str]
    slots: list[tuple[int, int]]
    spans: list[Span]
    controls: int
    hidden_reasoning: int
    unread: bool


class ChatTemplate:
    """A chat template with a tokenizer. ``eos_token_ids``: the tokens that end an assistant's turn,
    the last turn's first.

    ``opening`` is what the template writes to ask for an answer, beyond what every assistant turn begins with
    (``<think>`` in some). Raises InputError for what is not a template, that needs tokens the tokenizer does
    not have, or whose turns have no end. ``arguments``: what it is given beside the conversation (``enable_thinking``).
    """

    def __init__(
        self,
        text: str,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        control: ControlTokens,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.text = text
        self.name = name
        self.arguments = dict(arguments or {})
        self._tokenizer = tokenizer
        self._control = control
        self._special = dict(tokenizer.special_tokens_map)
        self._plans: dict[tuple[str, bool], Plan] = {}
        self._variants: dict[str, ChatTemplate] = {}
        # "x" so that neither number runs into a digit
        self._open, self._close = (f"x{secrets.token_hex(6)}x" for _ in range(2))
        # The quote shows how often a template has written a text as JSON: each time puts backslashes before it.
        self._slot = re.compile(rf'{self._open}(\d+)(\\*)"{self._close}')
        self._marks_answers = bool(_MARKERS.search(text))
        named = set(_REASONING_FIELD.findall(text))
        self._reasoning = next((key for key in ("reasoning_content", "thinking", "reasoning") if key in named), None)
        self._openings = Openings(lambda messages, tools: self.render(messages, tools, ask=True))
        self._header, self.opening, ends = self._probed()
        self.eos_token_ids = [control.ids[end] for end in ends]
        self._ends = frozenset(ends)
        self._unread = Unread(text, self._open)

    def render(self, messages: list[dict[str, Any]], tools: Any = None, *, ask: bool = False) -> str:
        """The text of a conversation; ``ask``: with the beginning of an assistant's turn after it."""
        return self._rendered(messages, tools, ask)[0]

    def variant(self, arguments: Mapping[str, Any]) -> ChatTemplate:
        """The template with a row's own arguments over the run's. Raises BadRow where it cannot be used with them."""
        if not arguments:
            return self
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._variants:
            if len(self._variants) >= _MOST_VARIANTS:
                self._variants.clear()
            both = self.arguments | dict(arguments)
            try:
                self._variants[key] = ChatTemplate(self.text, self.name, self._tokenizer, self._control, both)
            except InputError as error:
                reason = str(error).removeprefix("model.chat_template: ")
                raise BadRow("chat template", f"chat_template_kwargs: got {short(key)}; {reason}") from None
        return self._variants[key]

    @cached_property
    def habits(self) -> Habits:
        """What it does with reasoning."""
        names = [self._name_of(number) for number in range(4)]
        tagged = f"{BEGIN}\n{names[0]}\n{END}\n\n{names[1]}"
        turns = [{"role": "user", "content": names[2]}, {"role": "assistant", "content": tagged}]
        try:
            texts = [self.render(turns), self.render([*turns, {"role": "user", "content": names[3]}])]
        except BadRow:
            texts = []
        return Habits(self._reasoning, self.opening, any(tagged not in text for text in texts))

    def skeleton(self, conversation: Conversation, *, tags: bool = False) -> Skeleton:
        return skeleton_of(conversation, self._name_of, self._control.ids, self._reasoning, tags=tags)

    def mentions(self, field: str) -> bool:
        """Whether the template's text holds the name of a message field."""
        return field in self.text

    def plan(self, skeleton: Skeleton, *, ask: bool = False) -> Plan:
        """Where the template puts the texts of a conversation, ``ask``: and asks for the next answer. Raises BadRow."""
        key = skeleton.key, ask
        if key not in self._plans:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = self._made(skeleton, ask)
        return self._plans[key]

    def unread_plan(self, skeleton: Skeleton, *, ask: bool = False) -> Plan | None:
        """A plan that is known, and is what the template writes whatever the texts are."""
        known = self._plans.get((skeleton.key, ask))
        return known if known and known.unread else None

    def forget(self, skeleton: Skeleton, *, ask: bool = False) -> None:
        """Drop a plan that may have aged: a template can write today's date."""
        self._plans.pop((skeleton.key, ask), None)

    def _name_of(self, number: int) -> str:
        return f'{self._open}{number}"{self._close}'

    def _rendered(self, messages: list[dict[str, Any]], tools: Any, ask: bool = False) -> tuple[str, list[list[int]]]:
        """The text, and the [begin, end) of what the template marks as generated."""
        try:
            with limited(SECONDS, MEMORY):
                texts, marked = render_jinja_template(
                    conversations=[messages],
                    tools=tools,
                    chat_template=self.text,
                    return_assistant_tokens_mask=self._marks_answers,
                    add_generation_prompt=ask,
                    **self._special | self.arguments,
                )
        except (TookTooLong, MemoryError) as error:
            slow = isinstance(error, TookTooLong)
            used = f"{SECONDS:g} s" if slow else f"{MEMORY // 2**30} GB of memory"
            raise BadRow(RUNAWAY, f"chat template {self.name} takes more than {used} on this row") from None
        except RENDER_ERRORS as error:
            reason = one_line(error, 160)
            raise BadRow("chat template", f"chat template {self.name} fails on this row ({reason})") from None
        return texts[0], marked[0] if marked else []

    def _probed(self) -> tuple[str, str, list[str]]:
        """What every assistant turn begins with, what asking for one adds, and the tokens that end one."""
        names = [self._name_of(number) for number in range(4)]
        turns = [{"role": ("user", "assistant")[number % 2], "content": name} for number, name in enumerate(names)]
        try:
            text = self.render(turns)
            question, asking = self.render(turns[:1]), self.render(turns[:1], ask=True)
        except BadRow as bad:
            raise InputError(f"model.chat_template: {bad}".replace(" on this row", " on any row")) from None
        found = {int(match[1]): match for match in self._slot.finditer(text)}
        if sorted(found) != [0, 1, 2, 3]:
            raise InputError(
                f"model.chat_template: {self.name} does not write user and assistant turns as they are; use one that does"
            )
        for match in _NAMED_TOKEN.finditer(text + asking):
            if match[0] not in self._control.ids:
                text = f"{self.name} writes {match[0]}, which is not one token of the tokenizer"
                raise InputError(f"model.chat_template: {text}; use the tokenizer that belongs to the template")
        ends = []
        for begin, end in ((found[3].end(), len(text)), (found[1].end(), found[2].start())):
            tokens = self._control.found_in(text[begin:end])
            if not tokens:
                wrong = f"{self.name} ends an assistant's turn with {short(repr(text[begin:end]))}, which has no token"
                raise InputError(f"model.chat_template: {wrong} of this tokenizer; the model could not learn to stop")
            ends.append(tokens[0][0])
        added = asking[len(question) :] if asking.startswith(question) else ""
        before = text[found[0].end() : found[1].start()]
        header = _header(added, before)
        return header, added.removeprefix(header) if header else "", list(dict.fromkeys(ends))

    def _made(self, skeleton: Skeleton, ask: bool) -> Plan:
        text, generated = self._rendered(skeleton.messages, skeleton.tools, ask)
        matches = list(self._slot.finditer(text))
        literals, slots, position = [], [], 0
        for match in matches:
            literals.append(text[position : match.start()])
            # 0, 1, 3, 7 backslashes: written as JSON 0, 1, 2, 3 times
            slots.append((int(match[1]), (len(match[2]) + 1).bit_length() - 1))
            position = match.end()
        literals.append(text[position:])
        if any(self._open in literal or self._close in literal for literal in literals):
            raise self._uncertain("it changes a text as it writes it")
        self._check_shown(skeleton, {number for number, _ in slots})
        marked = [self._control.mark(literal) for literal in literals]
        spans = [
            self._span(skeleton, index, text, matches, generated)
            for index, message in enumerate(skeleton.messages)
            if message["role"] == "assistant" and not ask
        ]
        controls = sum(self._control.count_in(literal) for literal in literals)
        hidden = sum(1 for slot in skeleton.slots if slot.field == "reasoning") - sum(
            1 for number in {number for number, _ in slots} if skeleton.slots[number].field == "reasoning"
        )
        unread = self._unread.writes(
            text, skeleton.messages, add_generation_prompt=ask, **self._special | self.arguments
        )
        return Plan(literals, marked, slots, [span for span in spans if span], controls, hidden, unread)

    def _check_shown(self, skeleton: Skeleton, shown: set[int]) -> None:
        for number, slot in enumerate(skeleton.slots):
            if number in shown or slot.field == "reasoning":
                continue
            what = "the tools" if slot.message is None else f"turn {slot.message + 1}'s {slot.field} (role {slot.role})"
            if slot.required:
                raise BadRow("chat template", f"chat template {self.name} does not write {what}; use one that does")

    def _span(
        self, skeleton: Skeleton, index: int, text: str, matches: list[re.Match[str]], generated: list[list[int]]
    ) -> Span | None:
        """The assistant turn ``index`` in ``text``, the rendered skeleton; None where the template says
        it is not trained."""
        # matches are the stand-ins for texts as the template wrote them; a turn's own must stand side by side, because
        # what lies between its first and last is trained
        owners = [skeleton.slots[int(match[1])].message for match in matches]
        own = [number for number, owner in enumerate(owners) if owner == index]
        if not own or own != list(range(own[0], own[-1] + 1)):
            raise self._uncertain(f"it writes turn {index + 1} in several places")
        first, last = matches[own[0]], matches[own[-1]]
        before = matches[own[0] - 1].end() if own[0] else 0
        after = matches[own[-1] + 1].start() if own[-1] + 1 < len(matches) else len(text)
        # a template may write several control tokens after an answer: the first that ends a turn is the
        # last one trained
        ends = [token for token in self._control.found_in(text[last.end() : after]) if token[0] in self._ends]
        if not ends:
            raise self._uncertain(f"no end token follows turn {index + 1}")
        marked = next((begin for begin, end in generated if begin <= first.start() < end), None)
        if self._marks_answers and marked is None:
            return None
        # Where the answer begins, by the surest sign that this template gives: the last header before it, the
        # {% generation %} mark, or else the place where every text differs
        if self._header and (at := text.rfind(self._header, before, first.start())) >= 0:
            start = max(at + len(self._header), marked or 0)
        elif marked is not None:
            start = marked
        else:
            start = self._where_another_text_would_begin(skeleton, index, text)
        if not before <= start <= first.start():
            raise self._uncertain(f"turn {index + 1} has no clear beginning")
        literal = text[before:start]
        controls = self._control.found_in(literal)
        at = controls[-1].start() if controls else 0
        # No tokenizer joins across a control token, so the text from the last one on is enough to tell whether the
        # answer's first tokens are those that would follow the prompt
        tail = self._control.mark(literal[at:]), len(self._control.mark(literal[:at]))
        return Span(
            self._place(text, matches, start, own[0]),
            self._place(text, matches, last.end() + ends[0].start(), own[-1] + 1),
            index,
            self._openings.before(skeleton, index, text[:start], text[start:]),
            tail if controls else None,
        )

    def _where_another_text_would_begin(self, skeleton: Skeleton, index: int, text: str) -> int:
        """Where the turn's text would stand if it were a plain one: what comes before is not the turn's."""
        name = self._name_of(len(skeleton.slots))
        other = list(skeleton.messages)
        other[index] = {"role": "assistant", "content": name}
        changed, _ = self._rendered(other, skeleton.tools)
        start = changed.find(name)
        if start < 0 or changed[:start] != text[:start]:
            raise self._uncertain(f"turn {index + 1} has no clear beginning")
        return start

    def _place(self, text: str, matches: list[re.Match[str]], position: int, literal: int) -> Place:
        begin = matches[literal - 1].end() if literal else 0
        end = matches[literal].start() if literal < len(matches) else len(text)
        before, whole = self._control.mark(text[begin:position]), self._control.mark(text[begin:end])
        if not whole.startswith(before):
            raise self._uncertain("a turn begins inside a control token")
        return Place(literal, position - begin, len(before))

    def _uncertain(self, why: str) -> BadRow:
        rule = "which tokens are the answer's cannot be told, so the row is not used"
        return BadRow("chat template", f"chat template {self.name}: {why}; {rule}")


def _header(added: str, before: str) -> str:
    """What every assistant's turn begins with: the part of ``added``, which asks for one, that stands ``before`` an
    answer."""
    # A thought is not part of it: some templates ask with ``<think>`` and begin a turn without
    # one in ``<think></think>``.
    header, _, thought = added.partition(BEGIN)
    if header and header in before and (thought or added in before):
        return header
    return next((added[:size] for size in range(len(added), 0, -1) if before.endswith(added[:size])), "")


def escaped(text: str, times: int) -> str:
    """A text as it stands inside JSON, written ``times`` over."""
    for _ in range(times):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text
