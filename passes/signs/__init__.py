"""What is ±1 or {0, 1} in a model: signs and binary weights recognised, scales and biases moved away."""
