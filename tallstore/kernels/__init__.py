"""The arithmetic of a decoder. `reference` is the truth; every faster path equals it bit for bit."""
