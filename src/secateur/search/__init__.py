"""Which weights can go: curves of what each group costs, budgets spent along them, and short runs that refine them."""
