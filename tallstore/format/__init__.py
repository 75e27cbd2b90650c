"""Bytes ⇄ frozen header objects: what an archive is made of. No torch here. Specification: `spec/`."""
