"""Output folders: the names of their files, who made them, and everything that is read from them."""
