"""Numbers without jax: what chips offer and what a decoder costs, in closed form.

`hardware` is the table of chips, `transformer` counts parameters, `conventions` FLOPs and `memory` bytes, and `summary`
puts them together for one model. The notation is that of "How to Scale Your Model" (Austin et al. 2025), "the book"
below.
"""
