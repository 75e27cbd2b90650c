"""How much more noise in a tensor changes outputs than its size tells: by what a tensor is in a network.

Values of attention pass their noise on as it is, where that of queries and keys first goes through a softmax; a table
of positions is read by every example; the matrix of a causal model's outputs is the last thing before them; what leads
out of a gated block multiplies few inputs that are huge. Coders of quantized models spend more on the same tensors
(llama.cpp's mixtures of k-quants: values, what leads out of blocks, the output matrix). Factors lie between 1 and what
would have been best on SmolLM2 and MiniLM: `benchmarks/lm_kinds.py` tells that.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["sensitivity"]

_FACTORS = (
    (3.0, {"v_proj", "value", "to_v", "wv", "v_lin"}),
    (16.0, {"position_embeddings", "embed_positions", "position_embedding", "pos_embed", "pos_embedding", "wpe"}),
    (2.0, {"down_proj"}),
    (4.0, {"lm_head", "embed_out"}),
)
_TIED, _OUTPUT = {"embed_tokens", "wte", "embed_in"}, 4.0
"""Tables that are the matrix of outputs, too, where a model has no other."""
_ADDED, _MULTIPLIED = ("bias", "beta"), 10.0
"""Names of vectors that are added, to sums that mostly are far larger. All of an output is multiplied by others: of a
language model's long tune norms made 6 % of the KL on other text at 0.53 bits, and 9 % of the default's; so they make
nothing that shows, at 10 as at 100."""


def sensitivity(tensor: str, shape: tuple[int, ...], names: Collection[str]) -> float:
    """How many times as much noise in a tensor counts.

    Args:
        tensor: its name.
        shape: of it.
        names: of all tensors of the base.
    """
    if len(shape) < 2:
        return 1.0 if tensor.endswith(_ADDED) else _MULTIPLIED
    own = set(tensor.split(".")[-2:])
    for factor, modules in _FACTORS:
        if own & modules:
            return factor
    if own & _TIED and not any(set(name.split(".")[-2:]) & _FACTORS[-1][1] for name in names):
        return _OUTPUT
    return 1.0
