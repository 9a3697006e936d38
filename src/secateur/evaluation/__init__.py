"""How good a model is: what it writes, scored with intervals, and whether it has collapsed."""
