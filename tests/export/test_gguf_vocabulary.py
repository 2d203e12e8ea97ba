"""A sentencepiece tokenizer in a GGUF file begins texts with a space where the original does, and only there."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from meditune.export.gguf import add_vocabulary
from tests import tiny

gguf = pytest.importorskip("gguf")
SPACE = "▁"
REPLACE = normalizers.Replace(" ", SPACE)


def sentencepiece(normalizer=None, cutter=None):
    """A BPE of letters that spells other characters in bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"adehiprstu"]
    vocabulary = {token: number for number, token in enumerate([*tokens, "he", "the"])}
    model = models.BPE(vocabulary, [("h", "e"), ("t", "he")], unk_token="<unk>", byte_fallback=True)
    raw = Tokenizer(model)
    if normalizer:
        raw.normalizer = normalizer
    if cutter:
        raw.pre_tokenizer = cutter
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("normalizer", "cutter", "begins"),
    [
        (normalizers.Sequence([normalizers.Prepend(SPACE), REPLACE]), None, True),
        (normalizers.Prepend(SPACE), None, True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first"), True),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always")]), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never"), False),
        # Gemma's
        (REPLACE, pre_tokenizers.Split(" ", "merged_with_previous"), False),
    ],
    ids=["llama", "prepend", "first", "always", "never", "gemma"],
)
def test_a_text_begins_with_a_space_where_the_tokenizer_puts_one(tmp_path, normalizer, cutter, begins):
    tiny.model("gemma3").save_pretrained(tmp_path)
    tokenizer = sentencepiece(normalizer, cutter)
    tokenizer.save_pretrained(tmp_path)
    assert (tokenizer.tokenize("the")[0][0] == SPACE) == begins
    writer = gguf.GGUFWriter(tmp_path / "made.gguf", "gemma3")
    add_vocabulary(writer, tmp_path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    field = gguf.GGUFReader(tmp_path / "made.gguf").fields["tokenizer.ggml.add_space_prefix"]
    assert field.contents() == begins
