"""llama.cpp through the Python binding that lies beside its source."""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np

GGML_TYPE_F32 = 0


def load_binding(directory):
    """The binding's module; `directory` is what build.sh was given."""
    directory = Path(directory).resolve()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(directory / "build/bin")
    sys.path.insert(0, str(directory / "source"))
    import llama_cpp

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    load_binding.kept = silent
    return llama_cpp


class Llama:
    """A model file on the CPU. Keys and values are kept as f32, so that what differs comes from the products."""

    def __init__(self, binding, path, context=512, threads=2):
        self.llama = binding
        parameters = binding.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = binding.llama_model_load_from_file(os.fspath(path).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = binding.llama_model_get_vocab(self.model)
        self.rows = binding.llama_vocab_n_tokens(self.vocab)
        text = ctypes.create_string_buffer(64)
        binding.llama_model_meta_val_str(self.model, b"general.architecture", text, len(text))
        self.architecture = text.value.decode()
        parameters = binding.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = GGML_TYPE_F32
        parameters.flash_attn = False
        self.context = binding.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context for {path}")
        self.batch = binding.llama_batch_init(context, 0, 1)
        self.position = 0

    def close(self):
        self.llama.llama_batch_free(self.batch)
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def tokenize(self, text):
        """Ids of a text, with BOS where the file says so; special strings become special ids."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self.llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)
        assert count >= 0, count
        return list(ids[:count])

    def clear(self):
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        self.position = 0

    def read(self, tokens, wanted=1):
        """Logits `[wanted, vocabulary]` after the last `wanted` of further tokens."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= len(tokens) - wanted
        assert self.llama.llama_decode(self.context, batch) == 0
        self.position += len(tokens)
        first = len(tokens) - wanted
        rows = [np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.context, first + i), (self.rows,)).copy()
                for i in range(wanted)]
        return np.stack(rows)

    def greedy(self, prompt, count):
        """The best tokens one after another, and the logits `[count, vocabulary]` that gave them."""
        self.clear()
        rows = [self.read(prompt)]
        tokens = [int(rows[0].argmax())]
        while len(tokens) < count:
            rows.append(self.read(tokens[-1:]))
            tokens.append(int(rows[-1].argmax()))
        return tokens, np.concatenate(rows)

    def whole(self, prompt, follow):
        """Logits that predict each token of `follow`, from one pass."""
        self.clear()
        return self.read(prompt + follow[:-1], len(follow))
