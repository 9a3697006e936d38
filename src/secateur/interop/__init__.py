"""What other tools leave behind: their checkpoints and masks, and what their numbers mean here."""
