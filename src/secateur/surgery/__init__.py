"""Make a model smaller: what masks name is cut out, and what is left computes the same."""
