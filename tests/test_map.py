"""Where the tests of a module are: `tests/<package>/test_<module>.py`, or the files that a list here names.

Most modules are steps of a way that is tested as a whole, by what comes out of it: the list says by which files. It
grows only for that reason.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

from support import ROOT
from test_layers import PACKAGE, modules

TESTS = ROOT / "tests"
ELSEWHERE: dict[str, tuple[str, ...]] = {
    # The package itself.
    "_version": ("test_public.py", "test_supply.py"),
    "errors": ("test_public.py", "test_bad_input.py"),
    "evaluator": ("packing/test_pack_one_group.py", "packing/test_targets.py"),
    "notes": ("cli/test_cli.py", "quantized/test_every_type.py"),
    "humanize": ("cli/test_cli.py", "report/test_page.py"),
    "tensors": ("encoder/test_types.py", "quantized/test_every_type.py"),
    "zoo": ("archive/test_lazy.py", "archive_merge/test_merged.py", "report/test_page.py"),
    # By what is merged into a base, PEFT's own results beside it.
    "adapters/*": ("adapters/test_adapters.py", "adapters/test_kinds.py", "adapters/test_trainers.py"),
    # Decoding: every way of it gives the same bits, and no damage passes.
    "archive/adapters": ("adapters/test_adapters.py",),
    "archive/archive": ("archive/test_lazy.py",),
    "archive/base_tensors": ("checkpoints/test_referenced.py", "archive/test_verified.py"),
    "archive/binding": ("names/test_tied_models.py", "names/test_folders_of_modules.py", "test_transformers.py"),
    "archive/checkpoint": ("checkpoints/test_every_kind.py", "editing/test_adding.py"),
    "archive/chunk_*": ("archive/test_damage.py", "differential/test_differential.py"),
    "archive/compare": ("cli/test_cli.py", "matrix/test_matrix.py"),
    "archive/components": ("checkpoints/test_diffusers.py",),
    "archive/consistency": ("archive/test_damage.py", "trust/test_attacks.py"),
    "archive/decode": ("differential/test_differential.py", "test_roundtrip.py"),
    "archive/devices": ("archive/test_lazy.py",),
    "archive/export": ("stores/test_local.py", "checkpoints/test_nothing_is_silent.py"),
    "archive/facts": ("archive/test_lazy.py",),
    "archive/ancestry": ("relatives/test_family.py", "relatives/test_runs.py"),
    "archive/load_into": ("archive/test_verified.py", "test_transformers.py"),
    "archive/indexing": ("archive/test_slices.py",),
    "archive/locations": ("archive/test_damage.py", "spec/test_vectors.py"),
    "archive/memory_guard": ("test_memory.py", "trust/test_attacks.py"),
    "archive/merging/*": ("archive_merge/test_merged.py", "archive_merge/test_mask_statistics.py"),
    "archive/mixing": ("relatives/test_merges.py", "relatives/test_expression.py"),
    "archive/read_plan": ("differential/test_differential.py", "archive/test_slices.py", "hub/test_far.py"),
    "archive/prefetch": ("hub/test_far.py", "hub/test_pulling.py"),
    "archive/reader": ("archive/test_damage.py",),
    "archive/refetch": ("hub/test_pulling_damaged.py", "hub/test_tall_file.py"),
    "archive/resident*": ("archive/test_switch.py", "archive/test_resident_sampled.py"),
    "archive/sharing": ("editing/test_groups.py", "editing/test_adding.py"),
    "archive/splice": ("editing/test_groups.py", "packing/test_targets.py"),
    "archive/piece_cache": ("relatives/test_found.py",),
    "archive/segments": ("differential/test_differential.py", "relatives/test_merges.py"),
    "archive/shared_tensors": ("relatives/test_shared.py", "relatives/test_found.py"),
    "archive/subset": ("hub/test_pulling.py",),
    "archive/thin_folder": ("engines/test_transformers_quantizer.py",),
    "archive/verify": ("archive/test_damage.py", "trust/test_damage_everywhere.py"),
    # Checkpoints: as libraries write them.
    "checkpoints/adapters": ("adapters/test_adapters.py",),
    "checkpoints/base": ("checkpoints/test_every_kind.py",),
    "checkpoints/companions": ("checkpoints/test_nothing_is_silent.py",),
    "checkpoints/weight_sets_as_tasks": ("checkpoints/test_weight_sets.py",),
    "checkpoints/folder": ("checkpoints/test_diffusers.py", "checkpoints/test_sentence_transformers.py"),
    "checkpoints/hash_cache": ("hub/test_hash_cache.py",),
    "checkpoints/hub": ("hub/test_pulling.py", "hub/test_adapters.py"),
    "checkpoints/joined": ("checkpoints/test_every_kind.py", "checkpoints/test_diffusers.py"),
    "checkpoints/memory": ("checkpoints/test_every_kind.py", "checkpoints/test_bare_models.py"),
    "checkpoints/merged": ("adapters/test_scoring.py",),
    "checkpoints/mirror": ("checkpoints/test_folders_at_an_address.py",),
    "checkpoints/quantized": ("quantized/test_quantized.py", "quantized/test_stock_quantized.py"),
    "checkpoints/remote": ("checkpoints/test_every_kind.py", "checkpoints/test_folders_at_an_address.py"),
    "checkpoints/respelled": ("names/test_conversions.py",),
    "checkpoints/torch_files": ("checkpoints/test_refused_sources.py", "checkpoints/test_trainers_files.py"),
    "checkpoints/weights_files": ("checkpoints/test_nothing_is_silent.py",),
    # Verbs are tested as people use them.
    "cli/*": ("cli/test_cli.py", "cli/test_terminal.py", "docs/test_code.py", "docs/test_mistakes.py"),
    # Every codec passes its kind's suite; its bytes are those of the specification.
    "codecs/*": ("codecs/test_every_codec.py", "spec/test_vectors.py"),
    "codecs/known_dither": ("codecs/test_dither.py",),
    "codecs/low_rank": ("codecs/test_low_rank_bytes.py",),
    "demo/*": ("demo/test_demo.py",),
    "editing/*": (
        *("editing/test_adding.py", "editing/test_removing.py", "editing/test_compacting.py"),
        *("editing/test_groups.py", "editing/test_stopped.py"),
    ),
    # Packing: what comes out decodes to what the formula says, with every engine and backend the same bytes.
    "encoder/assembly": ("encoder/test_part_writer.py", "test_roundtrip.py"),
    "encoder/backend": ("kernels/test_encode.py",),
    "encoder/batches": ("encoder/test_engine.py",),
    "encoder/chunk": ("kernels/test_encode.py", "kernels/test_native_encode.py"),
    "encoder/components": ("checkpoints/test_diffusers.py",),
    "encoder/driver": ("test_roundtrip.py", "encoder/test_engine.py"),
    "encoder/*_item": ("encoder/test_fused_rows.py", "codecs/test_sample.py"),
    "encoder/groups": ("editing/test_groups.py",),
    "encoder/inspect_rows": ("encoder/test_reasons.py",),
    "encoder/items": ("encoder/test_engine.py",),
    "encoder/metrics": ("kernels/test_native_encode.py", "test_roundtrip.py"),
    "encoder/moved_elements": ("encoder/test_rounded_levels.py", "encoder/test_fused_rows.py"),
    "encoder/options": ("test_bad_input.py",),
    "encoder/pack": ("test_roundtrip.py", "encoder/test_determinism.py"),
    "encoder/pairing": ("names/test_pairing.py",),
    "encoder/plan": ("encoder/test_match.py", "encoder/test_types.py"),
    "encoder/quantize": ("recipes/test_solo.py", "encoder/test_fused_rows.py"),
    "encoder/remeasure": ("encoder/test_fused_rows.py",),
    "encoder/report": ("encoder/test_match.py", "cli/test_cli.py"),
    "encoder/result_files": ("encoder/test_part_writer.py", "encoder/test_engine.py"),
    "encoder/resume": ("encoder/test_engine.py",),
    "encoder/row_bits": ("kernels/test_native_encode.py",),
    "encoder/sampled_rows": ("recipes/test_sampled_changes.py", "archive/test_sampled.py"),
    "encoder/select_gpu": ("kernels/test_encode.py",),
    "encoder/select_native": ("kernels/test_native_encode.py",),
    "encoder/sidecars": ("checkpoints/test_nothing_is_silent.py",),
    "encoder/tile": ("kernels/test_encode.py",),
    "encoder/lossless_warnings": ("quantized/test_quantized.py",),
    # Engines are given tasks by way of their own loaders, a far archive beside them.
    "engines/*": ("engines/test_task_exchange.py", "engines/test_transformers_quantizer.py"),
    # What an archive may say: the specification's schema, vectors, limits and hostile inputs.
    "format/*": ("spec/test_schema.py", "spec/test_vectors.py", "spec/test_limits.py", "spec/test_hostile.py"),
    "hub/card": ("hub/test_pushing.py",),
    "hub/decoded_cache": ("hub/test_transformers_model.py",),
    "hub/resolve": ("hub/test_hub_cli.py",),
    "hub/thin_folders": ("engines/test_transformers_quantizer.py", "hub/test_pushing.py"),
    # Kernels: each backend against the reference.
    "kernels/codes": ("spec/test_vectors.py", "kernels/test_native_encode.py"),
    "kernels/devices": ("kernels/test_decode.py", "archive/test_switch.py"),
    "kernels/decoding_backends": ("kernels/test_library.py", "kernels/test_merge_rows.py"),
    "kernels/dare_fast": ("kernels/test_dare.py",),
    "kernels/place_hash": ("kernels/test_dare.py", "spec/test_pages.py"),
    "kernels/drift_choices": ("kernels/test_drift.py",),
    "kernels/drift_fast": ("kernels/test_drift.py",),
    "kernels/gpu/*": ("kernels/test_decode.py", "kernels/test_encode.py", "kernels/test_gpu_code.py"),
    "kernels/lattice_choices": ("kernels/test_lattice.py",),
    "kernels/lattice_fast": ("kernels/test_lattice.py",),
    "kernels/logarithm": ("kernels/test_choices.py",),
    "kernels/native/*": ("kernels/test_library.py", "kernels/test_tiled.py", "kernels/test_native_encode.py"),
    "kernels/native_types": ("kernels/test_fill.py",),
    "kernels/packed": ("kernels/test_tiled.py",),
    "kernels/packed_rows": ("kernels/test_products.py", "serving/test_multitask.py"),
    "kernels/device_rows": ("kernels/test_products.py",),
    "kernels/row_packing": ("kernels/test_products.py",),
    "kernels/pairs": ("kernels/test_fill.py",),
    "kernels/reference": ("kernels/test_tiled.py", "test_roundtrip.py"),
    "kernels/rules": ("kernels/test_encode.py",),
    "kernels/scratch": ("kernels/test_fill.py",),
    "kernels/steps": ("kernels/test_fill.py", "kernels/test_gap_lists.py"),
    "merging/*": ("merging/test_merging.py", "merging/test_agreement.py"),
    "names/*": ("names/test_conversions.py", "names/test_folders_of_modules.py"),
    "packing/*": ("packing/test_targets.py", "packing/test_pack_one_group.py"),
    # Recipes: golden values of the paper's code, and the formulas.
    "recipes/exact_products": ("recipes/test_common_columns.py", "recipes/test_low_rank.py"),
    "recipes/*": (
        "recipes/test_recipes.py",
        "recipes/test_golden.py",
        "recipes/test_solo.py",
        "kernels/test_choices.py",
    ),
    "report/*": ("report/test_page.py", "report/test_browser.py"),
    # Each row of a mixed batch is what its task gives alone.
    "serving/*": ("serving/test_multitask.py", "serving/test_multitask_calls.py"),
    "stores/base": ("stores/test_every_store.py",),
    "stores/opening": ("stores/test_every_store.py", "hub/test_hub_cli.py"),
    "stores/fsspec_*": ("hub/test_far_output.py", "hub/test_far.py"),
    "stores/hub*": ("hub/test_pulling.py", "hub/test_tall_file.py"),
    "stores/blocks": ("hub/test_far.py",),
    "stores/ranged_files": ("hub/test_far.py", "hub/test_hostile_far.py"),
    "stores/retries": ("hub/test_far.py",),
    "stores/http_files": ("hub/test_far.py",),
    "stores/zip_directory": ("stores/test_local.py", "trust/test_attacks.py"),
    "testing/*": ("stores/test_every_store.py", "codecs/test_every_codec.py", "checkpoints/test_every_kind.py"),
}
"""Module, or a pattern of modules, → the files that test it."""


def names() -> list[str]:
    """Every module, as `archive/merging/tiles`; those that only import or start are left out."""
    found = [path.relative_to(PACKAGE).with_suffix("").as_posix() for _, path in modules()]
    return [name for name in found if not Path(name).name.startswith("__")]


def is_mirrored(name: str) -> bool:
    package, _, module = name.rpartition("/")
    return any((TESTS / folder / f"test_{module}.py").exists() for folder in {package, package.split("/")[0]})


def test_every_module_has_its_tests_where_they_are_looked_for() -> None:
    idle = set(ELSEWHERE)
    for name in names():
        rules = [rule for rule in ELSEWHERE if fnmatch(name, rule)]
        if not is_mirrored(name):
            assert rules, f"{name}: no tests/{name.rpartition('/')[0]}/test_{Path(name).name}.py, and not in the list"
            idle -= set(rules)
    assert not idle, "these rules have no module left"


def test_the_files_of_the_list_are_there() -> None:
    for file in {file for files in ELSEWHERE.values() for file in files}:
        assert re.search(r"def test_|class Test", (TESTS / file).read_text(encoding="utf-8")), file


def test_no_private_name_is_patched() -> None:
    """Tests set what is public: sizes and waits are, so that internals can change."""
    private = re.compile(r"(^|\.)_[A-Za-z]\w*$")
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
                texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert not [text for text in texts if private.search(text)], f"{path}:{node.lineno}"
