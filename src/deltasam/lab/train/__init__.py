"""One run: data, model, method and seed in, a trained model and its results out."""
