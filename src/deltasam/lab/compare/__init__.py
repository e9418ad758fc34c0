"""Many runs: the grid of methods and seeds, the processes they run in, and what their differences mean."""
