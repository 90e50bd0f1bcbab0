"""The hub's token is checked and never shown."""

from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

from hybrid_ft.finetune.doctor import hub


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    secret = "hf_" + "A1" * 17
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: secret)
    who = {"name": "someone", "auth": {"accessToken": {"role": "read", "displayName": "x"}}}
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self: who)
    assert hub.token().said == "of someone, may read"

    def away(self: Any) -> Any:
        raise HfHubHTTPError.__bases__[0]("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", away)
    assert not hub.token().here

    def refused(self: Any) -> Any:
        error = RuntimeError(secret)
        error.response = type("Response", (), {"status_code": 401})  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refused)
    found = hub.token()
    assert found.red and secret not in str(found)
