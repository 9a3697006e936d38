"""Training that keeps removed weights at zero: the keeper, the trainer, dropout, optimizers."""
