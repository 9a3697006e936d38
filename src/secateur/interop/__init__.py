"""What other tools leave behind: their checkpoints, masks and configurations, and what their numbers mean here."""
