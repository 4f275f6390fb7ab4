"""How fast, how small, how frugal: `python -m benchmarks` measures it in one run and prints a table."""
