"""The application on top of the library: data, runs, comparisons, reports. Nothing below imports it."""
