"""Tokeniser files of each family, put together from the vocabularies that the repository holds or that
tools/fetch_tokenizers.sh brings. Yi's vocabulary is in no package: MGM-34B gets Llama's pieces in a table of Yi's size, with
Yi's special tokens at Yi's ids and Yi's settings."""

import json
import shutil
import sys
from pathlib import Path

from gguf import GGUFReader

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/mgm-text/tests/fixtures"


def token(content, special=True, rstrip=False, lstrip=False):
    return {"content": content, "lstrip": lstrip, "normalized": False, "rstrip": rstrip, "single_word": False, "special": special}


def named(content):
    return {"__type": "AddedToken", **{k: v for k, v in token(content).items() if k != "special"}}


def dump(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def pieces_of(path):
    fields = GGUFReader(str(path)).fields
    return list(zip(*(fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))))


def sentencepiece_model(rows):
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    model = model_pb2.ModelProto()
    for piece, score, kind in rows:
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(model.pieces), True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return model.SerializeToString()


LLAMA_NAMES = {"bos_token": named("<s>"), "eos_token": named("</s>"), "unk_token": named("<unk>"), "pad_token": None}


def vicuna(out, length):
    rows = pieces_of(FIXTURES / "ggml-vocab-llama-spm.gguf")
    (out / "tokenizer.model").write_bytes(sentencepiece_model(rows))
    dump(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": length, "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        **LLAMA_NAMES,
    })


def yi(out, length):
    # Type 3 is a control piece, 1 an ordinary one.
    special = ["<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>"]
    llama = pieces_of(FIXTURES / "ggml-vocab-llama-spm.gguf")
    rows = [llama[0], *((text, 0.0, 3) for text in special), *llama[3:]]
    lowest = min(score for _, score, _ in rows)
    rows += [(f"<filler {i}>", lowest - 1 - i, 1) for i in range(64000 - len(rows))]
    (out / "tokenizer.model").write_bytes(sentencepiece_model(rows))
    dump(out / "tokenizer_config.json", {
        "add_bos_token": False, "add_eos_token": False, "legacy": True, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): token(text) for i, text in ((0, "<unk>"), *((i + 1, s) for i, s in enumerate(special)))},
        "bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<unk>", "unk_token": "<unk>",
        "model_max_length": length, "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    })


def mixtral(out, length, assets):
    shutil.copyfile(FIXTURES / "mistral-v1.tokenizer.model", out / "tokenizer.model")
    shutil.copyfile(assets / "mistral.tokenizer.json", out / "tokenizer.json")
    dump(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "legacy": True, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): token(text) for i, text in enumerate(("<unk>", "<s>", "</s>"))},
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
        "model_max_length": length, "padding_side": "right", "tokenizer_class": "LlamaTokenizer",
    })


def gemma(out, length, assets):
    shutil.copyfile(assets / "gemma.tokenizer.json", out / "tokenizer.json")
    dump(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "model_max_length": length, "padding_side": "right", "tokenizer_class": "GemmaTokenizer",
    })


def llama_3(out, length, assets):
    """tokenizer.json in the published form, from the vocabulary and merges of the GGUF file."""
    fields = GGUFReader(str(assets / "ggml-vocab-llama-bpe.gguf")).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    ordinary = 128000
    added = [{"id": i, **token(tokens[i])} for i in range(ordinary, len(tokens))]
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
               r"\s+(?!\S)|\s+")
    begin = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    text = [{"Sequence": {"id": which, "type_id": n}} for n, which in enumerate("AB")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    dump(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [
            {**byte_level, "add_prefix_space": True, "use_regex": True},
            {"type": "TemplateProcessing", "single": [begin, text[0]],
             "pair": [begin, text[0], {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 1}}, text[1]],
             "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [128000], "tokens": ["<|begin_of_text|>"]}}}]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": {text: i for i, text in enumerate(tokens[:ordinary])}, "merges": merges},
    })
    dump(out / "tokenizer_config.json", {
        "added_tokens_decoder": {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in added},
        "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": True,
        "unk_token": "<|reserved_special_token_0|>", "pad_token": "<|reserved_special_token_0|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": length, "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


def write_tokenizer(family, out, length, assets):
    """Writes the tokeniser of a family; one whose vocabulary was not fetched is left out, with a line that says so."""
    try:
        match family:
            case "7b" | "13b":
                vicuna(out, length)
            case "34b":
                yi(out, length)
            case "8x7b":
                mixtral(out, length, assets)
            case "2b":
                gemma(out, length, assets)
            case "8b":
                llama_3(out, length, assets)
    except FileNotFoundError as error:
        print(f"no tokeniser for {family}: {error.filename} is missing (tools/fetch_tokenizers.sh brings it)", file=sys.stderr)
