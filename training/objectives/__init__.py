"""What a model can learn from structures without labels; each term of the sum is a file."""
