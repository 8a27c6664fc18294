"""Models whose architecture is not ours: transformers' modules over our keys and values, slower and still correct."""
