"""The loop that every method shares: score, assign, sum, update. A method is a choice of those
parts (`loop.Method`)."""
