"""Methods that regularise predictions under noise in dropout or embeddings, and do not move the weights."""
