"""A tokenizer beside its model: saved, read, refused."""

import pytest
from transformers import PreTrainedTokenizerFast

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.save import save
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary, load_tokenizer


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {word: i for i, word in enumerate(["<pad>", "<end>", *map(str, range(59))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<end>"
    )


def test_the_tokenizer_travels_with_the_model(ours, tokenizer, tmp_path):
    tokenizer.chat_template = "{{ messages }}"
    save(ours, tmp_path, tokenizer)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == "{{ messages }}"


def test_a_tokenizer_larger_than_the_embedding_is_refused(ours, tokenizer, tmp_path):
    check_vocabulary(tokenizer, ours.config)
    tokenizer.add_tokens(["one more"])
    with pytest.raises(
        InputError, match="the tokenizer needs an embedding of 62 rows, the model's has 61; use the model's own"
    ):
        save(ours, tmp_path / "never", tokenizer)
    assert not (tmp_path / "never").exists()


def test_a_folder_without_a_tokenizer_is_refused(saved):
    with pytest.raises(InputError, match=r"tokenizer\.json: missing; a tokenizer lies beside") as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)
