"""The arithmetic of a decoder. `cpu` is the truth; every faster path equals it bit for bit."""
