"""Which parameter of a model plays which role, which names are one tensor, and what a token costs."""
