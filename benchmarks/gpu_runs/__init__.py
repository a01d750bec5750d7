"""Cases -> what the plan says of them -> run folders -> measured children -> rows: the parts of benchmarks/gpu.py."""
