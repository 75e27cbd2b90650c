#!/usr/bin/env bash
# transformers 5.24.0: tie_word_embeddings=true does not tie where the file holds two different tensors
#
# Expected: the configuration decides, as before version 5: the head is the embedding, whatever the file holds.
# Observed: a checkpoint with a head of its own under a configuration that says "tied" loads untied, both tensors as
#   stored, while the loaded model's configuration still says nothing else. That keeps a head that was trained apart,
#   but whoever reads config.json to know whether the two share memory (exporters, quantizers, mergers) is wrong.
# Output, 2026-11-29:
#   equal tensors: tied True; different tensors: tied False, as stored True
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0
seen=$(cd "$work" && PYTHONPATH="$work/packages" HF_HUB_OFFLINE=1 python3 -W ignore - <<'PY' 2>/dev/null
import json
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, tie_word_embeddings=False)
LlamaForCausalLM(config).save_pretrained("model")
path = Path("model/config.json")
path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
stored = load_file("model/model.safetensors")

def load():
    model = LlamaForCausalLM.from_pretrained("model")
    return model, model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

model, apart = load()
as_stored = torch.equal(model.lm_head.weight, stored["lm_head.weight"]) and torch.equal(
    model.model.embed_tokens.weight, stored["model.embed_tokens.weight"])
same = stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}
save_file(same, "model/model.safetensors", {"format": "pt"})
print(f"equal tensors: tied {load()[1]}; different tensors: tied {apart}, as stored {as_stored}")
PY
)
echo "$seen"
[ "$seen" = "equal tensors: tied True; different tensors: tied False, as stored True" ] || { echo "changed"; exit 1; }
