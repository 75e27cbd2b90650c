"""The same bits as `kernels.reference`, on a GPU: one pass over memory each. Needs the package `triton`.

Importing a module of this package imports triton, so whatever uses it imports it where a tensor is on a GPU.

No product is fused with a sum: kernels are launched with `enable_fp_fusion=False`, and divided with `div_rn` alone, for
Triton's `/` is an approximation in float32. Subnormal numbers are kept; that is PTX's default.
"""
