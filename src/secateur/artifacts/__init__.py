"""What a run leaves on disk: checkpoints, counts, manifest, lock."""
