"""What a recipe is, and how one is read, checked and written; nothing here imports torch."""
