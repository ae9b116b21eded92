"""A synthetic archive, for `medret demo`, the tests and the benchmarks."""
