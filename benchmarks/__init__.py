"""How fast, at what cost, and what it promises for it: `python -m benchmarks` answers all questions at once."""
