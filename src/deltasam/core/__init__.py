"""The machinery of one backward: passes, restoring, closures, processes, files. Imports nothing from above."""
