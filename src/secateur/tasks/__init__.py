"""What a model is trained and measured on: pairs of texts, their token ids, and the order in which they are read."""
