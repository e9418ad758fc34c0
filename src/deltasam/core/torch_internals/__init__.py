"""Every private name of PyTorch that the package uses, one file per theme; nothing else of it uses one.

Each file begins with a list: the name, the version of PyTorch since which it is known to be there (2.6 is the oldest
that is allowed, "2.6" means there already), what it is for, and what happens where it is missing.
"""
