"""The native library: kernels in C11 (`src/`), their build (`build`) and their loading through ctypes (`library`).

The rules that every kernel keeps, whoever writes it:

- A function is written once and compiled once per CPU variant (`plain`, `avx2`, `avx512`; `plain`, `neon`); the macro
  `TS_KERNEL` gives it the variant's suffix. Python looks it up by the bare name: a module of Python that calls kernels
  declares them in one table, name → result and arguments, and gives that to `library.bind`.
- Pointers, sizes and numbers in; a number out. No Python, no allocation that outlives the call, no global state but
  what `library` sets when it loads. Kernels may run in any number of threads.
- Products and sums are rounded one by one: no fast-math and no contraction (`build.FLAGS`). The reference in Python is
  the truth, and every kernel equals it bit for bit. `products.c` and `own_outputs.c` alone may add up in another order
  and fuse a product with its sum: what they compute are a layer's outputs, and no weights.
- Callers check sizes; where bytes come from an archive, the kernel checks what they point to as well.
"""
