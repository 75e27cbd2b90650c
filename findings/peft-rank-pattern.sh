#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0: rank_pattern takes the first pattern that matches, not the most specific
#
# Expected: {"q_proj": 2, "layers.0.self_attn.q_proj": 8} gives layer 0 rank 8 and all others 2, in either order of
#   the keys: it is a mapping, and JSON's objects have no order.
# Observed: the first key whose name ends the module's wins, so with the general one first the specific one is never
#   used, without a warning; with the order turned, the same mapping makes another adapter. adapter_config.json keeps
#   the order of the keys; a tool that sorts them there changes the shapes that the loader expects.
# Output, 2026-11-29:
#   general first 2, specific first 8
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
seen=$(PYTHONPATH="$work/packages" python3 -W ignore - <<'PY' 2>/dev/null
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

def rank(pattern):
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj"], rank_pattern=pattern))
    return model.base_model.model.model.layers[0].self_attn.q_proj.r["default"]

general, specific = {"q_proj": 2}, {"layers.0.self_attn.q_proj": 8}
print(f"general first {rank(general | specific)}, specific first {rank(specific | general)}")
PY
)
echo "$seen"
[ "$seen" = "general first 2, specific first 8" ] || { echo "changed"; exit 1; }
