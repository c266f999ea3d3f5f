"""The learned unmasking policy (2512.09106): a small network reads confidences and decides which slots to commit."""
