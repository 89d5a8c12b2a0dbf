"""What is counted over every sample of a micro batch, whichever rank holds it."""
