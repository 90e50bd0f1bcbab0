"""A model as lm_eval asks it; what prompts share is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.likelihood import weighed
from hybrid_ft.finetune.evaluation.share import ALONE, Share
from hybrid_ft.finetune.evaluation.written import write_answers
from hybrid_ft.finetune.generation.generate import Sampling
from hybrid_ft.finetune.runs.identity import digest_of
from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOGETHER = 64
"""Answers that are kept together at most."""
_MAX_NEW_TOKENS = 256
"""Of an answer whose task names no length, as in lm_eval's HFLM."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "top_k": (0, None),
    "repetition_penalty": (1, None),
    "num_return_sequences": (1, None),
}
"""Settings of sampling that are not there, and the values with which they say nothing."""


@dataclass
class _Branched:
    """A context, and continuations of it; as an evaluation's item."""

    prompt: list[int]
    branches: list[list[int]]
    labels: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Weighed:
    """A continuation to be weighed. ``group``: those of one task, whose contexts begin alike."""

    group: str
    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def key(self) -> str:
        return digest_of(["weighed", self.context, self.continuation])[7:39]


class StockModel(TemplateLM):
    """lm_eval's requests, answered by this project's likelihood and generation; equal to HFLM's answers on the same
    model. ``load``: opens the model, and is called where an answer is missing.

    Contexts that are too long lose their beginning, as in HFLM; ``cut`` counts them.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        kept: Kept,
        budget: Budget,
        chat: bool = False,
        share: Share = ALONE,
    ) -> None:
        super().__init__()
        self.load, self.tokenizer, self.kept, self.budget, self.chat = load, tokenizer, kept, budget, chat
        self.share = share
        self.max_length = resolve_max_length(config, tokenizer)
        self.cut: set[tuple[int, ...]] = set()
        self.tokens = 0
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        self._encoder = self._encoder or Encoder.of_tokenizer(self.tokenizer)
        return self._encoder

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                chat_template=self.encoder.template.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.encoder.template.arguments,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            return self._encoded([string])[0]
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Of prompts: together, as one by one takes a part of the time that answers of a few tokens take."""
        first = str(self.tokenizer.decode(self.prefix_token_id))
        # a template writes the first token itself
        written = [text.startswith(first) for text in texts]
        found = {
            whether: iter(self.tokenizer(those, add_special_tokens=not whether)["input_ids"])
            for whether in set(written)
            if (those := [text for text, one in zip(texts, written, strict=True) if one == whether])
        }
        return [list(next(found[one])) for one in written]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        wanted = []
        for request in requests:
            context, continuation = request.args
            if context:
                before, after = self._encode_pair(context, continuation)
            else:
                after = self.tok_encode(continuation, add_special_tokens=False)
                before = [self.prefix_token_id]
                if after[:1] == before:
                    before, after = after[:1], after[1:]
            wanted.append(self._fitting(request.task_name or "", before, after))
        return self._weigh(wanted)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._weigh([self._fitting("", context, after) for _, context, after in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[_Weighed] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            own = [self._fitting("", *make_disjoint_window(part)) for part in parts]
            windows += own
            counts.append(len(own))
        found = iter(self._weigh(windows))
        return [sum(value for value, _ in itertools.islice(found, count)) for count in counts]

    def _fitting(self, group: str, context: list[int], continuation: list[int]) -> _Weighed:
        """The end of a context that has room before its continuation, whose last token is not read."""
        room = max(1, self.max_length + 1 - len(continuation))
        if len(context) > room:
            self.cut.add(tuple(context))
        return _Weighed(group, tuple(context[-room:]), tuple(continuation))

    def _weigh(self, wanted: Sequence[_Weighed]) -> list[tuple[float, bool]]:
        """Of each continuation the log-probability of its tokens, and whether each is the likeliest."""
        by_group: dict[str, dict[tuple[int, ...], list[_Weighed]]] = {}
        for one in dict.fromkeys(wanted):
            if one.continuation:
                by_group.setdefault(one.group, {}).setdefault(one.context, []).append(one)
        self._keep(self._weighed_lines(self.share.of(list(contexts.values()))) for contexts in by_group.values())
        nothing = {"log_prob": 0.0, "greedy": True}
        lines = [self.kept.lines[one.key] if one.continuation else nothing for one in wanted]
        return [(float(line["log_prob"]), bool(line["greedy"])) for line in lines]

    def _keep(self, groups: Iterable[Iterator[dict[str, Any]]]) -> None:
        """Answer and keep, until all is there or a stop comes between."""
        found = itertools.chain.from_iterable(groups)
        while not self.share.stopped() and (part := list(itertools.islice(found, _TOGETHER))):
            self.kept.add(part)
        self.share.meet(self.kept)

    def _weighed_lines(self, contexts: list[list[_Weighed]]) -> Iterator[dict[str, Any]]:
        there = self.kept.lines
        done = [all(one.key in there for one in of_one) for of_one in contexts]
        if all(done):
            return
        items = [_Branched(list(one[0].context), [list(branch.continuation) for branch in one]) for one in contexts]
        for number, branches in weighed(self.load(), items, self.budget, done):
            self.tokens += len(items[number].prompt) + sum(map(len, items[number].branches))
            for one, tokens in zip(contexts[number], branches, strict=True):
                if one.key in there:
                    continue
                log_prob, greedy = sum(value for value, _ in tokens), all(likeliest for _, likeliest in tokens)
                yield {"key": one.key, "log_prob": log_prob, "greedy": greedy}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        times: dict[str, int] = {}
        keys = []
        by_group: dict[str, list[tuple[str, Instance]]] = {}
        for request in requests:
            name = digest_of(["written", *request.args])[7:39]
            times[name] = times.get(name, 0) + 1
            keys.append(f"{name}-{times[name]}")  # of several samples each has its own
            group = digest_of([request.task_name, request.args[1]])
            by_group.setdefault(group, []).append((keys[-1], request))
        self._keep(self._written_lines(self.share.of(of_group)) for of_group in by_group.values())
        return [self.kept.lines[key]["answer"] for key in keys]

    def _written_lines(self, wanted: list[tuple[str, Instance]]) -> Iterator[dict[str, Any]]:
        """Of requests of one task with the same settings."""
        done = [key in self.kept.lines for key, _ in wanted]
        if all(done):
            return
        task = wanted[0][1].task_name
        settings: dict[str, Any] = dict(normalize_gen_kwargs(wanted[0][1].args[1], _MAX_NEW_TOKENS))
        until, most = list(settings.pop("until") or []), int(settings.pop("max_gen_toks"))
        sampled, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 0.0))
        sampling = Sampling((temperature or 1.0) if sampled else 0.0, float(settings.pop("top_p", 1.0) or 1.0))
        for name, value in settings.items():
            if value not in _NEUTRAL.get(name, ()):
                raise InputError(f"lm_eval:{task}: generation_kwargs has {name}: {value!r}, which is not known here")
        room = self.max_length - most
        if room < 1:
            raise InputError(f"lm_eval:{task}: answers of {most:,} tokens leave no room in {self.max_length:,}")
        prompts = []
        for tokens in self._encoded([request.args[0] for _, request in wanted]):
            if len(tokens) > room:
                self.cut.add(tuple(tokens))
            prompts.append(tokens[-room:])
        model = self.load()
        ends = end_tokens(model, self.tokenizer, self.encoder.eos_token_ids if self.chat else [self.eot_token_id])
        until.append(str(self.tokenizer.decode(self.eot_token_id)))
        stops = [text for text in until[:-1] if text]
        answers = write_answers(model, self.tokenizer, prompts, ends, most, sampling, self.budget, stops, done)
        for number, (text, count) in answers:
            self.tokens += count
            answer = postprocess_generated_text(text, until, None)
            yield {"key": wanted[number][0], "answer": answer, "tokens": count}
