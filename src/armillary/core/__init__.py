"""Numbers only: what computing and sending cost, in closed forms on arrays. No files, no torch."""
