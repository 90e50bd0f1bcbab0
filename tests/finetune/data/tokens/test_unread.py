"""A template counts as one that looks at no text only where it could not tell two texts apart."""

import random
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.data.tokens.unread import Unread
from hybrid_ft.finetune.recipe.shipped import PACKAGE_ROOT

TURNS = [{"role": role, "content": f'NAME{number}"'} for number, role in enumerate(["system", "user", "assistant"] * 2)]
LOOP = "{%% for m in messages %%}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{%% endfor %%}"
WRITES = [
    "{{ m.content }}",
    "{{ m['content'] | trim }}",
    "{{ m.content.strip() }}",
    "{{ 'a' ~ m.content + 'b' }}",
    "{% if m.content %}{{ m.content }}{% endif %}",
    "{% if m.content is string %}{{ m.content }}{% endif %}",
    "{% if m.role == 'user' and not loop.first %}{{ m.content }}{% else %}{{ m['content'] }}{% endif %}",
    "{% set x = m.content %}{% set y %}{{ x }}!{% endset %}{{ y }}",
    "{% macro w(t, n=1) %}[{{ t }}]{% endmacro %}{{ w(m.content) }}",
    "{{ (messages | selectattr('role', 'equalto', 'user') | first).content }}",
    "{{ messages[1:][0].content }}{{ messages | length }}",
    "{% set ns = namespace(t='') %}{% set ns.t = ns.t ~ m.content %}{{ ns.t }}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{{ m.get('content') }}{{ m.tools | default('') }}",
]
LOOKS = [
    "{% if 'x' in m.content %}{% endif %}{{ m.content }}",
    "{% if m.content == 'x' %}{% endif %}{{ m.content }}",
    "{% if m.content in ['x', 'y'] %}{% endif %}",
    "{% if m.content in 'xyz' %}{% endif %}",
    "{% if ('a' ~ m.content) < 'b' %}{% endif %}",
    "{% if m in messages %}{% endif %}",
    "{% if m.content is eq('x') %}{% endif %}",
    "{% if m.content is upper %}{% endif %}",
    "{{ m.content[:5] }}",
    "{{ m.content[0] }}",
    "{{ m.content.split('x')[0] }}",
    "{{ m.content.strip('x') }}",
    "{{ m.content | trim('x') }}",
    "{{ m.content.startswith('x') }}",
    "{{ 'x'.startswith(m.content) }}",
    "{{ {'a': 1}.get(m.content) }}",
    "{{ {'a': 1}[m.content] }}",
    "{{ m.content | length }}",
    "{{ m.content | upper }}",
    "{{ m.content | replace('x', 'y') }}",
    "{{ m.content | tojson }}",
    "{{ m | tojson }}",
    "{{ m.content | e }}",
    "{{ m.content | int }}",
    "{{ '%s' % m.content }}",
    "{{ m.content * 2 }}",
    "{{ m }}",
    "{{ messages }}",
    "{{ m ~ '' }}",
    "{{ m | string }}",
    "{{ messages | map(attribute='content') | list }}",
    "{{ messages | selectattr('content', 'equalto', 'x') | list | length }}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% set x %}{{ m.content }}{% endset %}{% if 'x' in x %}{% endif %}",
    "{% set x = m.content ~ '' %}{% if x.endswith('x') %}{% endif %}",
    "{% macro w(t) %}{{ t | length }}{% endmacro %}{{ w(m.content) }}",
    "{% macro w(t) %}{{ t }}{% endmacro %}{{ w(m.content) | length }}",
    "{% set ns = namespace(t=m.content) %}{% if ns.t == 'x' %}{% endif %}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% set x | upper %}{{ m.content }}{% endset %}",
    "{{ strftime_now('%Y') }}",
    "{{ lipsum() }}",
    "{% if loop.changed(m.content) %}{% endif %}",
]


def written(body: str) -> bool:
    template = LOOP % body
    texts, _ = render_jinja_template(conversations=[TURNS], chat_template=template)
    return Unread(template, "NAME").writes(texts[0], TURNS, add_generation_prompt=False)


@pytest.mark.parametrize("body", WRITES)
def test_a_template_that_only_writes(body: str) -> None:
    assert written(body)


@pytest.mark.parametrize("body", LOOKS)
def test_a_template_that_looks(body: str) -> None:
    assert not written(body)


def test_rows_are_not_rendered_and_come_out_as_if_they_were(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PACKAGE_ROOT / "finetune" / "data" / "tokens" / "olmo-instruct.jinja").read_text()
    control, chance = ControlTokens(tokenizer), random.Random(0)
    pieces = ["a", "B ", "\n", " ", "<|im_end|>", "{{ x }}", '"', "\\", "<b>", "&", "\u00e9", "\u4e2d", "1 2", "\t"]

    def said() -> str:
        return "".join(chance.choices(pieces, k=chance.randint(1, 9))) + "."

    def conversation() -> Conversation:
        turns = [{"role": "system", "content": said()}] if chance.random() < 0.5 else []
        for _ in range(chance.randint(1, 3)):
            turns += [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]
        return Conversation(turns)

    rows = [conversation() for _ in range(200)]
    quick, slow = (ChatTemplate(text, "one", tokenizer, control) for _ in range(2))
    monkeypatch.setattr(slow, "unread_plan", lambda *_, **__: None)
    wanted = encode(rows, slow, control)
    made = encode(rows, quick, control)
    assert [(one.ids, one.labels(), one.prompt_ids, one.answer) for one in made] == [
        (one.ids, one.labels(), one.prompt_ids, one.answer) for one in wanted
    ]
    rendered: list[Any] = []
    monkeypatch.setattr(quick, "render", lambda *given, **_: rendered.append(given))
    encode(rows, quick, control)
    assert not rendered
