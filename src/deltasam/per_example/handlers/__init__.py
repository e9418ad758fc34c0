"""What is done where a torch function is given parameters: one file per way, and the table that says which.

``table`` names the functions that are treated in a way of their own; ``products`` follows the tables of rules,
``copies`` gives every example its copies by broadcasting, ``mapped`` by ``vmap``; ``alone`` keeps what no example has
met yet, ``writes`` follows what is changed in place, ``composed`` takes functions apart.
"""
