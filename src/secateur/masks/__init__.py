"""Which weights stay: scores, budgets, masks, and the ways a mask is laid on a live model and taken off again."""
