"""What a trained model keeps when its weights are rounded, pruned, disturbed or trained on."""
