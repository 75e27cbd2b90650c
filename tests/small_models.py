"""Models of transformers made small, and what fine-tuning makes of them: shared by the tests that load real ones."""

from __future__ import annotations

import torch

BERT = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 24,
}  # fmt: skip
GPT2 = {"vocab_size": 70, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def tune(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same model, every parameter moved a little in its own type; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.01 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model.eval()
