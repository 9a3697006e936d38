"""The card, its tables and its picture, made from a run's manifest alone."""
