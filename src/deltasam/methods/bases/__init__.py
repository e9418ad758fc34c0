"""What several methods have in common: base classes, predictions, offsets of embeddings."""
