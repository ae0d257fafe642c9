"""What follows an accumulator: chains of float nodes become integer thresholds, or work of the kernel."""
