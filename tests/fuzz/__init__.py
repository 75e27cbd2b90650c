"""Coverage-guided fuzzing with atheris: bytes from strangers give right weights, or an error of our own tree.

    PYTHONPATH=.:tests python -m fuzz --list
    PYTHONPATH=.:tests python -m fuzz archive codec-adaptive --seconds 600

One module a kind of input, one table of targets (`targets`). Inputs are what a reader is given (manifests, parts,
`.tall` files, coded chunks), so that a finding is a file that anybody can try; the mutators know how such bytes are
built, and put hashes, lengths and frames right again, or the checks at the door would be all that is ever reached.
"""
