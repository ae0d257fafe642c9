"""Constant weights of few levels beside float activations become codes."""
