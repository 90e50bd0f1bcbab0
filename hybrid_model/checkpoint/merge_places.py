"""Where in a base's files a weight lies that an adapter changes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedConfig

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.adapter_changes import EMBEDDING, HEAD, Changes
from hybrid_ft.hybrid_model.checkpoint.adapter_files import WEIGHTS
from hybrid_ft.hybrid_model.checkpoint.base_layout import place_of, write_config_of_base
from hybrid_ft.hybrid_model.checkpoint.save import write_config
from hybrid_ft.hybrid_model.checkpoint.tensor_files import StoredTensor, stored_tensors
from hybrid_ft.hybrid_model.checkpoint.text_model import model_without_values
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files, read_headers
from hybrid_ft.hybrid_model.families.family import Released
from hybrid_ft.hybrid_model.families.known import family_of


class Unplaced(Exception):
    """An adapter changes a tensor that the base's files hold in several, or as part of another."""


class Places(Protocol):
    """The files of a base, and what each tensor of the result is in memory.

    in_memory  shapes by the names that PEFT knows
    embedding  the name of the embedding among them
    """

    in_memory: dict[str, tuple[int, ...]]
    embedding: str

    def settle(self, folder: Path, changes: Changes, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the result's tensors by their names in files, and ``config`` as the result's.

        Raises Unplaced, and InputError where the files have no place for the adapter in ``folder``.
        """
        ...

    def memory_name(self, name: str) -> str | None:
        """The changed tensor in memory that a tensor in files is, or is a part of."""
        ...

    def source(self, name: str) -> StoredTensor:
        """The base's tensor that one of the result comes from."""
        ...

    def cut(self, name: str, changes: Changes) -> torch.Tensor | None:
        """The whole tensor where it is a part of another in memory."""
        ...

    def write_config(self, folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> None:
        """The result's ``config.json`` and what lies beside it."""
        ...


def places_of(base: Path, config: PreTrainedConfig) -> Places:
    """Only headers are read. Raises InputError for a base that is damaged."""
    released = family_of(config).released
    return PlacesOfBase(base, config) if released is None else ReleasedPlaces(base, config, released)


class PlacesOfBase:
    """Of a family whose files transformers names: those of the base, under its names."""

    def __init__(self, base: Path, config: PreTrainedConfig) -> None:
        check_weight_files(base, config)
        self.base = base
        self._stored: dict[str, StoredTensor] = {}
        for path in read_headers(base):
            self._stored |= stored_tensors(path)
        self._model = model_without_values(base, config)
        self._state = self._model.state_dict()
        self.in_memory = {name: tuple(tensor.shape) for name, tensor in self._state.items()}
        table = self._model.get_input_embeddings().weight
        self.embedding = next(
            name for name, each in self._model.named_parameters(remove_duplicate=False) if each is table
        )
        self._changed: dict[str, str] = {}
        self._vocabulary: int | None = None

    def settle(self, folder: Path, changes: Changes, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        tied = bool(config.tie_word_embeddings)
        if changes.tied != tied:
            raise parted(folder, config)
        shapes = {name: stored.shape for name, stored in self._stored.items()}
        # tied, a change of the head is one of the embedding, and PEFT may name either, or both
        own = {name: self.embedding if tied and name == HEAD else name for name in sorted(changes.of)}
        tables = {self.embedding} if tied else {self.embedding, HEAD}
        for name in {*own.values(), *tables}:
            place = place_of(self._model, name, self._state[name], shapes)
            changed = next((change for change, of in own.items() if of == name), None)
            if changed is not None and (place is None or place in self._changed):
                raise Unplaced(name)
            # and the head that is the embedding may lie in the files as well
            beside = tied and name == self.embedding and HEAD in shapes
            for each in {one for one in (place, HEAD if beside else None) if one is not None}:
                if changed is not None:
                    self._changed[each] = name if name in changes.of else changed
                if name in tables:
                    shapes[each] = (changes.vocabulary, *shapes[each][1:])
        if changes.vocabulary != config.vocab_size:
            self._vocabulary = config.vocab_size = changes.vocabulary
        return shapes

    def memory_name(self, name: str) -> str | None:
        return self._changed.get(name)

    def source(self, name: str) -> StoredTensor:
        return self._stored[name]

    def cut(self, name: str, changes: Changes) -> torch.Tensor | None:
        return None

    def write_config(self, folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> None:
        write_config_of_base(self.base, folder, config, dtype, self._vocabulary)


class ReleasedPlaces:
    """Of a family with a layout of its own, however the base's files cut it."""

    embedding = EMBEDDING

    def __init__(self, base: Path, config: PreTrainedConfig, released: Released) -> None:
        check_weight_files(base, config)
        self._config, self._released = config, released
        self._stored: dict[str, StoredTensor] = {}
        for path in read_headers(base):
            self._stored |= {released.current(name): stored for name, stored in stored_tensors(path).items()}
        self._tied = bool(config.tie_word_embeddings)
        self.in_memory: dict[str, tuple[int, ...]] = {}
        self._cut: dict[str, list[str]] = {}
        for name, shape in released.shapes(config).items():
            joined = released.joined(name)
            if joined is None:
                self.in_memory[name] = shape
            else:
                self._cut.setdefault(joined, []).append(name)
                self.in_memory[joined] = (self.in_memory.get(joined, (0,))[0] + shape[0], *shape[1:])

    def settle(self, folder: Path, changes: Changes, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        config.tie_word_embeddings, config.vocab_size = changes.tied, changes.vocabulary
        config.architectures = [family_of(config).architecture]
        return self._released.shapes(config)

    def memory_name(self, name: str) -> str | None:
        return self._released.joined(name) or name

    def source(self, name: str) -> StoredTensor:
        # a tied base may hold its head as well, and nobody reads it there
        if name == HEAD and (self._tied or HEAD not in self._stored):
            return self._stored[EMBEDDING]
        if name in self._stored:
            return self._stored[name]
        joined = self._released.joined(name)
        assert joined is not None
        return self._stored[joined]

    def cut(self, name: str, changes: Changes) -> torch.Tensor | None:
        joined = self._released.joined(name)
        if joined is None:
            return None
        change = changes.of.get(joined)
        if change is not None and change.whole is not None:
            whole = change.whole.read()
        elif joined in self._stored:
            whole = self._stored[joined].read()
        else:
            whole = torch.cat([self._stored[part].read() for part in self._cut[joined]])
        return self._released.named({joined: whole}, self._config)[name]

    def write_config(self, folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> None:
        if dtype is not None:
            config.dtype = dtype
        write_config(config, folder)


def parted(folder: Path, config: PreTrainedConfig) -> InputError:
    """For an adapter in ``folder`` after which the head is no longer the embedding."""
    return InputError(
        f"{folder / WEIGHTS}: parts the head from the embedding, and the files of a {config.model_type} base have no place for "
        "that; merge it with what made it"
    )
