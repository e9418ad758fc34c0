"""Paired differences, their intervals and corrected p-values, and the words for them."""
