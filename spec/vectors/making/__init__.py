"""What `generate.py` builds the conformance vectors with. No part of the package, and run by hand alone."""
