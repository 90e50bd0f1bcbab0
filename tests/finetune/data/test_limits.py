"""A chat template that would never end, or eat the memory, is stopped, and what was set for that is put back."""

import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.limits import TookTooLong, limited
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.tokens import template as template_module
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.recipe.schema import Dpo, Recipe, changed

WITH = "{{% if {} %}}{}{{% endif %}}"
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
ODD = "'odd' in messages[0].content"


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "SECONDS", 0.3)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (ENDLESS, "takes more than 0.3 s on any row"),
        ("{{ 9 ** (9 ** 9) }}", "takes more than 0.3 s on any row"),
        ("{{ 'a' * 10 ** 10 }}", "takes more than 1 GB of memory on any row"),
        (
            "{% set n = namespace(x='aaaa') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "takes more than",
        ),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "fails on any row (Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails on any row (maximum recursion depth"),
        ("{{ messages.__class__.__mro__ }}", "fails on any row (access to attribute"),
    ],
)
def test_a_runaway_template_is_refused_at_the_start(
    program: str, says: str, templates: dict[str, str], tokenizer: Any, control: ControlTokens, short_limits: None
) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        ChatTemplate(templates["chatml"] + program, "wild.jinja", tokenizer, control)
    assert str(error.value).startswith("model.chat_template: chat template wild.jinja ") and says in str(error.value)
    assert "\n" not in str(error.value) and error.value.status == 2
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_row_on_which_it_runs_away_stops_the_run(
    pairs: bool,
    on_bad_row: str,
    write_rows: Callable[..., Path],
    recipe: Callable[..., Recipe],
    templates: dict[str, str],
    tokenizer: Any,
    tmp_path: Path,
    short_limits: None,
) -> None:
    (tmp_path / "wild.jinja").write_text(templates["chatml"] + WITH.format(ODD, ENDLESS))
    answers = {"chosen": "a", "rejected": "b"} if pairs else {"completion": "a"}
    path = write_rows([{"prompt": f"{'odd' if n > 1 else 'even'} {n}", **answers} for n in range(40)])
    made = recipe(path, on_bad_row=on_bad_row, max_dropped=1.0)
    made = changed(made, "model", chat_template=str(tmp_path / "wild.jinja"))
    if pairs:
        made = made.model_copy(update={"dpo": Dpo()})
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        prepare(made, tokenizer)
    assert time.perf_counter() - began < 60
    text = str(error.value)
    assert text.startswith(f"{path}:3: chat template ") and "takes more than 0.3 s on this row" in text
    assert "model.chat_template" in text and "on_bad_row" not in text


def test_what_stood_before_is_put_back() -> None:
    heard: list[int] = []
    memory = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(TookTooLong), limited(0.1, 2**30):
            spin(5)
        with limited(0.1, 2**30):
            pass
        assert not heard
        spin(0.6)
        assert heard == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert resource.getrlimit(resource.RLIMIT_AS) == memory


def test_another_thread_is_left_alone() -> None:
    done: list[bool] = []

    def work() -> None:
        with limited(0.05, 2**30):
            spin(0.2)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
