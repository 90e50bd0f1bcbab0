"""Payloads that write the file MARKER where they are run, and inputs that carry them."""

import gzip
import io
import json
import lzma
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from bad_models import A_TENSOR, WEIGHTS, adapter, tensors_of, with_config, with_json
from refusals import OF_MODEL, RECIPE, ROW, Case, lines

MARKER = "ran"
TOUCH = f"touch {MARKER}"
ASKED = ("chat", "model", "--max-new-tokens", "2")

HEAD = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""a template that is sound, so that only what follows it is wrong"""
_OS = ".__init__.__globals__.os.system"
ESCAPES = {
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a base": "{{ ().__class__.__base__.__subclasses__() }}",
    "cycler": "{{ cycler" + _OS + f"('{TOUCH}') }}}}",
    "joiner": "{{ joiner" + _OS + f"('{TOUCH}') }}}}",
    "namespace": "{{ namespace" + _OS + f"('{TOUCH}') }}}}",
    "lipsum": f"{{{{ lipsum.__globals__['os'].system('{TOUCH}') }}}}",
    "range": f"{{{{ range.__self__.open('{MARKER}', 'w') }}}}",
    "dict": "{{ dict.mro() }}",
    "builtins of a filter": f"{{{{ raise_exception.__globals__.__builtins__.open('{MARKER}', 'w') }}}}",
    "a helper's module": f"{{{{ strftime_now.__globals__['datetime'].sys.modules['os'].system('{TOUCH}') }}}}",
    "the filter attr": f"{{{{ (cycler|attr('__init__')|attr('__globals__'))['os'].system('{TOUCH}') }}}}",
    "attr by joined letters": f"{{{{ (lipsum|attr('__glo' ~ 'bals__'))['os'].system('{TOUCH}') }}}}",
    "attr by escapes": f"{{{{ (lipsum|attr('\\x5f\\x5fglobals\\x5f\\x5f'))['os'].system('{TOUCH}') }}}}",
    "the filter map": "{{ ['']|map(attribute='__class__')|map(attribute='__mro__')|list|first|first|string + nothing.x }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__.__init__.__globals__}'.format_map({'a': cycler}) }}",
    "format by a filter": "{{ ('{0.__class__.__mro__}'|attr('format'))('') }}",
    "format handed on": "{{ ['{0.__class__}'.format]|map('string')|list|first + nothing.x }}",
    "the template's own context": f"{{{{ self._TemplateReference__context.cycler{_OS}('{TOUCH}') }}}}",
    "the environment": f"{{{{ self._TemplateReference__context.environment.from_string('x')._module{_OS}('{TOUCH}') }}}}",
    "a macro's code": f"{{% macro m() %}}{{% endmacro %}}{{{{ m._func.__globals__['os'].system('{TOUCH}') }}}}",
    "a macro's caller": "{% macro m() %}{{ caller.__call__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "a generator's frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "loop": f"{{% for m in messages %}}{{{{ loop{_OS}('{TOUCH}') }}}}{{% endfor %}}",
    "a change of the messages": "{{ messages.append(messages[0]) }}",
    "a change by name": "{{ messages[0].update({'content': 'x'}) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch ran') }}",
    "an extension": "{% do cycler.x() %}",
}
RUNAWAYS = {
    "a long range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a long text": "{{ 'a' * 10 ** 11 }}",
    "a list of lists": "{{ ([[0] * 10 ** 8] * 10 ** 8)|length + ([0] * 10 ** 10)|length }}",
    "doubling": "{% set n = namespace(x='aaaa') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "padding": "{{ '%*d' % (10 ** 9, 1) }}{{ 'a'.ljust(10 ** 11) }}",
    "centring": "{{ 'a'|center(10 ** 11) }}",
    "indentation": "{{ ('a\\n' * 10 ** 6)|indent(10 ** 6) }}",
    "a format's width": "{{ '{:>99999999999}'.format('a') }}",
    "filler text": "{{ lipsum(n=10 ** 7) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a deep expression": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


class Payload:
    def __init__(self, marker: Path | str = MARKER) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def pickled(marker: Path | str = MARKER) -> bytes:
    return pickle.dumps({"payload": Payload(marker)})


def saved(marker: Path | str = MARKER) -> bytes:
    """The same as torch writes it."""
    file = io.BytesIO()
    torch.save({"payload": Payload(marker), A_TENSOR: torch.zeros(2)}, file)
    return file.getvalue()


def foreign_code(folder: Path, marker: Path | str = MARKER) -> None:
    """Modules beside a model that leave the marker when they are imported, and configs that name them."""
    code = f"open({str(marker)!r}, 'w')\nclass Evil: pass\nEvilTokenizer = EvilTokenizerFast = EvilConfig = Evil\n"
    for name in ("evil", "modeling_evil", "tokenization_evil", "configuration_evil", "custom_generate/generate"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil"}
    with_config(
        auto_map=names,
        trust_remote_code=True,
        _attn_implementation="evil-owner/evil-kernels",
        _attn_implementation_internal="evil-owner/evil-kernels",
        custom_pipelines={"evil": {"impl": "evil.Evil", "pt": ["AutoModel"]}},
        use_kernels=True,
    )(folder)
    with_json(
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizerFast"]},
        trust_remote_code=True,
    )(folder)
    with_json("generation_config.json", custom_generate="evil-owner/evil", trust_remote_code=True)(folder)


FOREIGN_KEYS = ('"auto_map"', '"trust_remote_code"', "evil", "Evil", '"use_kernels"', '"custom_')
"""what no file of an export may hold"""


def _by_tokenizer_class(folder: Path) -> None:
    foreign_code(folder)
    with_json("tokenizer_config.json", tokenizer_class="EvilTokenizer")(folder)


def _weights(name: str, content: bytes, keep: bool = False) -> Any:
    def damage(folder: Path) -> None:
        if not keep:
            (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return damage


def _index_of_pickles(folder: Path) -> None:
    index = dict.fromkeys(tensors_of(folder), "pytorch_model-00001-of-00001.bin")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(saved())
    for name in (f"{WEIGHTS}.index.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _pickled_adapter(content: bytes, name: str = "adapter_model.bin") -> Any:
    def damage(folder: Path) -> None:
        adapter()(folder)
        (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return damage


def _mapped_adapter(folder: Path) -> None:
    mapping = {"base_model_class": "Evil", "parent_library": "evil"}
    adapter(lambda config, _: config.update(auto_mapping=mapping, base_model_class="evil.Evil"))(folder)
    (folder / "evil.py").write_text(f"open({MARKER!r}, 'w')\nclass Evil: pass\n")


def _carried(name: str, damage: Any, status: tuple[int, ...] = (2,)) -> list[Case]:
    """The folder as a base to train, and as a model to talk to."""
    trained = Case(f"{name}, trained", (), recipe=OF_MODEL, model=damage, status=status)
    return [trained, Case(f"{name}, asked", (), ASKED, model=damage, status=status)]


MODELS = [
    case
    for kind, content in (("pickle", pickled()), ("torch's pickle", saved()))
    for case in (
        *_carried(f"pytorch_model.bin, a {kind}", _weights("pytorch_model.bin", content)),
        *_carried(f"model.safetensors, a {kind}", _weights(WEIGHTS, content)),
        Case(f"adapter_model.bin, a {kind}", (), ASKED, model=_pickled_adapter(content)),
        Case(
            f"adapter_model.safetensors, a {kind}",
            (),
            ASKED,
            model=_pickled_adapter(content, "adapter_model.safetensors"),
        ),
    )
] + [
    *_carried("an index of pickles", _index_of_pickles),
    Case("a tokenizer of foreign code", (), ("data", "r.yaml"), OF_MODEL, model=_by_tokenizer_class, status=(0, 2)),
    Case("an adapter of foreign code", (), ASKED, model=_mapped_adapter, status=(0, 2)),
    Case("a model of foreign code", (), ASKED, model=foreign_code, status=(0, 2)),
    Case("pickles beside the weights", (), ASKED, model=_weights("pytorch_model.bin", saved(), True), status=(0,)),
]  # fmt: skip

_APPLY = f"!!python/object/apply:builtins.open ['{MARKER}', w]"
_NEW = f"!!python/object/new:os.system ['{TOUCH}']"
_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(3))}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
YAMLS = [
    Case(f"{where}: {what}", (), command, content, files, complaints=0)
    for what, bad in (("open", f"x: {_APPLY}\n"), ("system", f"x: {_NEW}\n"), ("laughs", _LAUGHS), ("import", "x: !!python/name:evil.x\n"))
    for where, command, content, files in (
        ("a recipe", ("sft", "r.yaml"), RECIPE + bad, {}),
        ("stages", ("run", "r.yaml"), "stages: [{sft: quickstart}]\n" + bad, {}),
        ("a recipe of a stage", ("run", "r.yaml"), "stages: [{sft: s.yaml}]\n", {"s.yaml": RECIPE + bad}),
        ("a column mapping", ("data", "r.yaml"), RECIPE.replace("rows.jsonl", "rows.jsonl, columns: c.yaml"), {"c.yaml": bad}),
    )
] + [
    Case("code to trust", (), ("sft", "r.yaml", "model.trust_remote_code=true")),
]  # fmt: skip


def of_template(name: str, program: str) -> list[Case]:
    """A template as ``data`` has it from a recipe, ``sft`` with samples and ``generate`` from the model's folder."""

    def own(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(HEAD + program)

    named = RECIPE.replace("tiny", "tiny, chat_template: t.jinja")
    sampled = OF_MODEL + "evaluate: {samples: [hello]}\n"
    answers = ("generate", "model", "--prompts", "p.jsonl", "--max-new-tokens", "2")
    prompts = {"p.jsonl": lines({"prompt": "hello"})}
    return [
        Case(f"{name}: data", (), ("data", "r.yaml"), named, {"t.jinja": HEAD + program}),
        Case(f"{name}: generate", (), answers, OF_MODEL, prompts, own),
        Case(f"{name}: samples", (), ("sft", "r.yaml"), sampled, model=own),
    ]


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../{MARKER}", "x")
        archive.writestr("/tmp/../" + MARKER, "x")
        archive.writestr("rows.jsonl", lines(ROW))


def of_archive(name: str, content: Any, *says: str, status: int = 2) -> Case:
    recipe = RECIPE.replace("rows.jsonl", name)
    return Case(f"archive: {name}", says, ("data", "r.yaml"), recipe, {name: content}, status=(status,))


def bombs(size: int) -> list[Case]:
    """Archives of a few kB that unpack to ``size`` bytes that would be held at once; and one that is streamed."""
    many = [json.dumps(ROW)] * (size // len(json.dumps(ROW)) + 1)
    rows = ", ".join(many)
    zeros, limit = gzip.compress(bytes(size)), "unpacks to more than"
    return [
        of_archive("a.json.gz", gzip.compress(f"[\n{rows}\n]".encode()), limit),
        of_archive("b.json.gz", gzip.compress(f"[{rows}]".encode()), limit),
        of_archive("c.jsonl.gz", gzip.compress(f"[{rows}]".encode()), limit),
        of_archive("d.parquet.gz", zeros, limit),
        of_archive("e.json.gz", zeros, limit),
        of_archive("f.jsonl.gz", zeros, "f.jsonl.gz"),
        of_archive("g.csv.gz", zeros, "g.csv.gz"),
        of_archive("i.json.zst", pa.compress(bytes(size), "zstd", asbytes=True), limit),
        of_archive("j.json.xz", lzma.compress(bytes(size)), limit),
        of_archive("h.jsonl.gz", gzip.compress("\n".join(many).encode()), status=0),
    ]


ZIPS = [
    of_archive("z.jsonl", zipped, "is a zip archive"),
    of_archive("z.parquet", zipped, "z.parquet"),
    Case("archive: a model", ("model.zip",), recipe=RECIPE.replace("tiny", "model.zip"), files={"model.zip": zipped}),
]
