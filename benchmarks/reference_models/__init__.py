"""Published models that are no plain transformer, written from their papers, for tracing."""
