"""A report's page, parsed."""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; every element is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.raw = file.read_text(encoding="utf-8")
        self.feed(self.raw)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_inert(self) -> None:
        """No script but the page's own, nothing that is fetched, no handler."""
        tags = {tag for tag, _ in self.elements}
        assert self.raw.count("<script") == 1 and ("script", {}) in self.elements
        own = self.raw.partition("<script>")[2].partition("</script>")[0].encode()
        digest = base64.b64encode(hashlib.sha256(own).digest()).decode()
        assert not tags & {"img", "link", "iframe", "object", "embed", "form", "a", "base", "use", "image"}
        for _, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
        assert sum(tag == "style" for tag, _ in self.elements) == 1
        policy = [a["content"] for tag, a in self.elements if tag == "meta" and a.get("http-equiv")]
        assert policy == [f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
        assert "url(" not in self.raw and "@import" not in self.raw
