"""Who computes the numbers that the methods ask for: log-probs, averages of weights, gains, samples."""
