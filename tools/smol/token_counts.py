"""Token counts of records with SmolLM2's own vocabulary and the template that the built-in model is trained with."""

from pathlib import Path

from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

VISUAL_TOKENS = 64
CONTROL_TOKEN = 3


class Counter:
    """Counts tokens of a conversation as ChatML without a system message."""

    def __init__(self, path: Path):
        fields = GGUFReader(str(path)).fields
        strings = lambda name: [bytes(fields[name].parts[i]).decode() for i in fields[name].data]
        tokens, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
        self.tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ])
        self.cache = {}

    def length(self, text):
        if text not in self.cache:
            self.cache[text] = len(self.tokenizer.encode(text).ids)
        return self.cache[text]

    def count(self, record):
        """(all tokens with the visual ones, tokens of the answers with their end tokens)."""
        total, answered = VISUAL_TOKENS, 0
        for message in record["conversations"]:
            text = message["value"].replace("<image>", "")
            length = self.length(text)
            # <|im_start|>, role, newline, text, <|im_end|>, newline
            total += length + 5
            if message["from"] == "gpt":
                answered += length + 1
        return total, answered
