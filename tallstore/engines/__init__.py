"""Engines of others that are given tasks of an archive: transformers' own loaders, and vLLM.

Nothing is imported here: each engine's package is loaded where that engine itself loads it.
"""
