"""Every private name of torch that is used, each with what it is for and what happens where it is missing."""
