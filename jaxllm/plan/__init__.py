"""The plan: which mesh to use, what it takes, and what the real compilers say to it."""
