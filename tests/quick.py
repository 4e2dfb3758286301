"""How the tests' programs are compiled for CPUs."""

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Partitioned and fused as ever, but made into machine code that is worse and sooner there: it runs a few times."""
