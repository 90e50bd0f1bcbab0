"""Packed files that are cut short."""

from pathlib import Path

import pytest
from file_kinds import PACK

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_data_cut_short(suffix: str, tmp_path: Path) -> None:
    import random

    noise = random.Random(0)
    rows = b"".join(b'{"a": "%d"}\n' % noise.getrandbits(256) for _ in range(20_000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](rows)[:-1000])
    read = 0
    with pytest.raises(InputError, match=r"a\.jsonl\.\w+:\d+: .* ends in the middle; the file was cut short") as error:
        for row in open_source(Source(path=str(path))).rows:
            read = row.line
    assert read > 1000 and f":{read}:" in str(error.value)
